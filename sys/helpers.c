// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of helpers.h: one kernel macro, inline function or group of struct
 * sock fields each.  Little is decided here.
 */
#include <linux/bottom_half.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/gfp.h>
#include <linux/mm.h>
#include <linux/nsproxy.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/sizes.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "helpers.h"

/*
 * The hook is found through sk_user_data, under sk_callback_lock: once
 * kccm_sock_hook_remove() has returned, no upcall runs or will run.  An
 * accepted socket inherits its listener's callbacks, but not the hook
 * (SK_USER_DATA_NOCOPY); until it gets its own, its upcalls end here.
 */
static struct kccm_sock_hook *hook_of(struct sock *sk)
{
	return rcu_dereference_sk_user_data(sk);
}

static void hook_data_ready(struct sock *sk)
{
	struct kccm_sock_hook *hook;

	read_lock_bh(&sk->sk_callback_lock);
	rcu_read_lock();
	hook = hook_of(sk);
	if (hook)
		hook->readable(hook->ctx, sk);
	rcu_read_unlock();
	read_unlock_bh(&sk->sk_callback_lock);
}

static void hook_write_space(struct sock *sk)
{
	struct kccm_sock_hook *hook;

	read_lock_bh(&sk->sk_callback_lock);
	rcu_read_lock();
	hook = hook_of(sk);
	if (hook && sk_stream_is_writeable(sk)) {
		if (sk->sk_socket)
			clear_bit(SOCK_NOSPACE, &sk->sk_socket->flags);
		hook->writable(hook->ctx);
	}
	rcu_read_unlock();
	read_unlock_bh(&sk->sk_callback_lock);
}

static void hook_state_change(struct sock *sk)
{
	struct kccm_sock_hook *hook;

	read_lock_bh(&sk->sk_callback_lock);
	rcu_read_lock();
	hook = hook_of(sk);
	if (hook)
		hook->changed(hook->ctx);
	rcu_read_unlock();
	read_unlock_bh(&sk->sk_callback_lock);
}

void kccm_sock_hook_install(struct socket *sock, struct kccm_sock_hook *hook)
{
	struct sock *sk = sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	hook->saved_data_ready = sk->sk_data_ready;
	hook->saved_write_space = sk->sk_write_space;
	hook->saved_state_change = sk->sk_state_change;
	hook->sk = sk;
	__rcu_assign_sk_user_data_with_flags(sk, hook, SK_USER_DATA_NOCOPY);
	WRITE_ONCE(sk->sk_data_ready, hook_data_ready);
	WRITE_ONCE(sk->sk_write_space, hook_write_space);
	WRITE_ONCE(sk->sk_state_change, hook_state_change);
	write_unlock_bh(&sk->sk_callback_lock);
}

void kccm_sock_hook_remove(struct kccm_sock_hook *hook)
{
	struct sock *sk = hook->sk;

	if (!sk)
		return;
	write_lock_bh(&sk->sk_callback_lock);
	rcu_assign_sk_user_data(sk, NULL);
	WRITE_ONCE(sk->sk_data_ready, hook->saved_data_ready);
	WRITE_ONCE(sk->sk_write_space, hook->saved_write_space);
	WRITE_ONCE(sk->sk_state_change, hook->saved_state_change);
	hook->sk = NULL;
	write_unlock_bh(&sk->sk_callback_lock);
}

/* Undo what @sock, just accepted, has inherited from the socket with @parent. */
void kccm_sock_unhook_child(struct socket *sock,
			    const struct kccm_sock_hook *parent)
{
	struct sock *sk = sock->sk;

	write_lock_bh(&sk->sk_callback_lock);
	WRITE_ONCE(sk->sk_data_ready, parent->saved_data_ready);
	WRITE_ONCE(sk->sk_write_space, parent->saved_write_space);
	WRITE_ONCE(sk->sk_state_change, parent->saved_state_change);
	write_unlock_bh(&sk->sk_callback_lock);
}

/*
 * What waits in TCP for the peer's window or the network to have room for it,
 * bytes: enough to go on with until more is sent.
 */
#define NOTSENT_LOWAT	SZ_256K

/*
 * Allocate for this socket as the callers may: they can be writing back pages.
 * The per-task page fragment would be shared with whatever the task was doing.
 */
void kccm_sock_prepare(struct socket *sock)
{
	struct sock *sk = sock->sk;

	/*
	 * Hold the namespace as a user's socket does. Without that, closing
	 * stops the timers, and what waits for the other end's FIN stays.
	 */
	if (!sk->sk_net_refcnt)
		sk_net_refcnt_upgrade(sk);
	sk->sk_allocation = GFP_NOIO;
	sk->sk_use_task_frag = false;
	sock_set_reuseaddr(sk);
	if (sk->sk_type == SOCK_STREAM && sk->sk_protocol == IPPROTO_TCP) {
		tcp_sock_set_nodelay(sk);
		WRITE_ONCE(tcp_sk(sk)->notsent_lowat, NOTSENT_LOWAT);
	}
}

/*
 * What is sent is copied into 32 KiB that a socket has to itself, and keeps:
 * while it sends next to nothing, a page will do. It gets the 32 KiB again when
 * what was sent of the page is not acknowledged before the page is full.
 */
void kccm_sock_trim(struct socket *sock)
{
	struct sock *sk = sock->sk;
	struct page_frag *frag = &sk->sk_frag;
	struct page *page;

	if (READ_ONCE(frag->size) <= PAGE_SIZE)
		return;
	page = alloc_page(GFP_NOIO | __GFP_NOWARN);
	lock_sock(sk);
	swap(frag->page, page);
	WRITE_ONCE(frag->size, frag->page ? PAGE_SIZE : 0);
	frag->offset = 0;
	release_sock(sk);
	if (page)
		put_page(page);
}

/* Let @len more bytes, 2^28 at most, wait to be sent than the socket lets as a rule. */
void kccm_sock_make_room(struct socket *sock, unsigned int len)
{
	struct sock *sk = sock->sk;

	lock_sock(sk);
	/* However much has not been sent, which net.ipv4.tcp_notsent_lowat bounds. */
	WRITE_ONCE(tcp_sk(sk)->notsent_lowat, UINT_MAX);
	sk->sk_userlocks |= SOCK_SNDBUF_LOCK;
	/* Each byte counts with its part of the buffer that it is in. */
	WRITE_ONCE(sk->sk_sndbuf, max(sk->sk_sndbuf, sk->sk_wmem_queued) +
				  SKB_TRUESIZE(len) + len);
	release_sock(sk);
}

void kccm_sock_reset_on_close(struct socket *sock)
{
	sock_no_linger(sock->sk);
}

/* 0: connected; -EINPROGRESS: not yet; else the error that ended it. */
int kccm_sock_status(struct socket *sock)
{
	struct sock *sk = sock->sk;
	int err = sock_error(sk);

	if (err)
		return err;
	switch (READ_ONCE(sk->sk_state)) {
	case TCP_ESTABLISHED:
	case TCP_CLOSE_WAIT:
		return 0;
	case TCP_SYN_SENT:
	case TCP_SYN_RECV:
		return -EINPROGRESS;
	default:
		return -ECONNRESET;
	}
}

/*
 * A message of bytes that TCP refers to instead of copying them, at most
 * KCCM_SPLICE_MAX pieces of pages that nobody writes to any more.
 */
static void prepare_splice(struct msghdr *msg, struct bio_vec *bvec,
			   const struct kvec *vec, unsigned int n,
			   unsigned int len, bool more)
{
	unsigned int i;

	for (i = 0; i < n; i++)
		bvec_set_virt(&bvec[i], vec[i].iov_base, vec[i].iov_len);
	iov_iter_bvec(&msg->msg_iter, ITER_SOURCE, bvec, n, len);
	msg->msg_flags = MSG_SPLICE_PAGES | MSG_DONTWAIT | MSG_NOSIGNAL |
			 (more ? MSG_MORE : 0);
}

int kccm_sock_splice(struct socket *sock, const struct kvec *vec,
		     unsigned int n, unsigned int len, bool more)
{
	struct bio_vec bvec[KCCM_SPLICE_MAX];
	struct msghdr msg = {};

	if (n > ARRAY_SIZE(bvec))
		return -EINVAL;
	prepare_splice(&msg, bvec, vec, n, len, more);
	return sock_sendmsg(sock, &msg);
}

/* Whether something has come in that nobody has received. */
bool kccm_sock_unread(struct socket *sock)
{
	return !skb_queue_empty_lockless(&sock->sk->sk_receive_queue);
}

/*
 * Whether a receive would find bytes, the end of the stream or an error. Of what
 * comes after this has looked, the callbacks of the socket tell.
 */
bool kccm_sock_pending(struct socket *sock)
{
	const struct sock *sk = sock->sk;

	return kccm_sock_unread(sock) || READ_ONCE(sk->sk_err) ||
	       (READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN);
}

/*
 * Whether the other end has acknowledged all that was sent before the socket was
 * shut down, and that it was; or the connection is no more.
 */
bool kccm_sock_settled(struct socket *sock)
{
	int state = READ_ONCE(sock->sk->sk_state);

	return !((1 << state) & (TCPF_FIN_WAIT1 | TCPF_CLOSING | TCPF_LAST_ACK));
}

/* What the other end has acknowledged, a number that only grows, modulo 2^32. */
u32 kccm_sock_acknowledged(struct socket *sock)
{
	return READ_ONCE(tcp_sk(sock->sk)->snd_una);
}

/*
 * Releases a socket, without its connection if the other end has yet to answer: it
 * is reset. TCP would go on for minutes with all that it has yet to send, and a
 * peer that does not answer, or has to sign that it has gone and cannot, could
 * have any number of those.
 */
void kccm_sock_release(struct socket *sock)
{
	int state = READ_ONCE(sock->sk->sk_state);

	if ((1 << state) & (TCPF_ESTABLISHED | TCPF_SYN_RECV | TCPF_FIN_WAIT1 |
			    TCPF_CLOSE_WAIT | TCPF_CLOSING | TCPF_LAST_ACK))
		kccm_sock_reset_on_close(sock);
	sock_release(sock);
}

/*
 * What follows is for the readable() upcall.  TCP makes it with the socket
 * locked: in softirq with the lock itself held, or by the task that has the
 * socket, when it lets go and sees to what came in meanwhile.  Either way the
 * queues of the socket are ours for the moment.
 */

/*
 * Copy the first @len bytes of what has come in to @buf, without taking them.
 * Returns how many there are in all, or 0 if those @len are not there in one
 * piece, or if anything about the socket is out of the ordinary.
 */
unsigned int kccm_upcall_peek(struct sock *sk, void *buf, unsigned int len)
{
	const struct tcp_sock *tp = tcp_sk(sk);
	struct sk_buff *skb = skb_peek(&sk->sk_receive_queue);
	unsigned int offset;

	if (!skb || sk->sk_state != TCP_ESTABLISHED || tp->urg_data ||
	    (TCP_SKB_CB(skb)->tcp_flags & (TCPHDR_SYN | TCPHDR_FIN)))
		return 0;
	offset = tp->copied_seq - TCP_SKB_CB(skb)->seq;
	if (offset > skb->len || skb->len - offset < len ||
	    skb_copy_bits(skb, offset, buf, len))
		return 0;
	return tp->rcv_nxt - tp->copied_seq;
}

bool kccm_upcall_empty(const struct sock *sk)
{
	return skb_queue_empty(&sk->sk_receive_queue);
}

/*
 * Copy @len bytes that come after @skip others to @buf, without taking any; they
 * must be there.
 */
int kccm_upcall_copy(struct sock *sk, unsigned int skip, void *buf,
		     unsigned int len)
{
	u32 seq = tcp_sk(sk)->copied_seq + skip;
	struct sk_buff *skb;

	skb_queue_walk(&sk->sk_receive_queue, skb) {
		u32 offset = seq - TCP_SKB_CB(skb)->seq;
		unsigned int n;
		int err;

		if (!len)
			break;
		if (offset >= skb->len)
			continue;
		n = min(skb->len - offset, len);
		err = skb_copy_bits(skb, offset, buf, n);
		if (err)
			return err;
		seq += n;
		buf += n;
		len -= n;
	}
	return len ? -EIO : 0;
}

/*
 * Whether @len bytes, counted from the first that is there, come in before any is
 * taken: the other side has been allowed to send them, in whole segments, and
 * there is memory for them.  Then acknowledge what is there as if it had been
 * taken (tcp_cleanup_rbuf() in net/ipv4/tcp.c): the sender may wait for that.
 */
bool kccm_upcall_await(struct sock *sk, unsigned int len)
{
	const struct inet_connection_sock *icsk = inet_csk(sk);
	const struct tcp_sock *tp = tcp_sk(sk);
	int rcvbuf = READ_ONCE(sk->sk_rcvbuf);
	s32 room = tp->rcv_wup + tp->rcv_wnd - tp->copied_seq;

	/* With that, what has been allowed may be taken back. */
	if (READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_shrink_window) ||
	    room < (s32)(len + icsk->icsk_ack.rcv_mss) ||
	    icsk->icsk_ack.pending & ICSK_ACK_NOMEM ||
	    atomic_read(&sk->sk_rmem_alloc) > rcvbuf - (rcvbuf >> 3))
		return false;
	if (tp->rcv_nxt - tp->rcv_wup > icsk->icsk_ack.rcv_mss)
		__tcp_send_ack(sk, tp->rcv_nxt, 0);
	return true;
}

static int pass_some(read_descriptor_t *desc, struct sk_buff *skb,
		     unsigned int offset, size_t len)
{
	unsigned int n = min(len, desc->count);

	desc->count -= n;
	return n;
}

/*
 * Take @len bytes, which must be there.  Returns 0, or an error when the stream
 * cannot be gone on with.
 */
int kccm_upcall_pass(struct sock *sk, unsigned int len)
{
	read_descriptor_t desc = { .count = len };

	tcp_read_sock(sk, &desc, pass_some);
	return desc.count ? -EIO : 0;
}

/* Nothing here may sleep. */
static int upcall_sendmsg(struct sock *sk, struct msghdr *msg, unsigned int len)
{
	gfp_t allocation = sk->sk_allocation;
	int ret;

	/* After 16 packets TCP would see to what has come in, which can sleep. */
	if (!sk_can_gso(sk))
		iov_iter_truncate(&msg->msg_iter, 15 * tcp_sk(sk)->mss_cache);
	sk->sk_allocation = GFP_ATOMIC;
	ret = tcp_sendmsg_locked(sk, msg, min_t(size_t, len, msg_data_left(msg)));
	sk->sk_allocation = allocation;
	return ret;
}

/* Send as kernel_sendmsg() does with MSG_DONTWAIT. */
int kccm_upcall_send(struct sock *sk, struct kvec *vec, unsigned int n,
		     unsigned int len, bool more)
{
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0),
	};

	iov_iter_kvec(&msg.msg_iter, ITER_SOURCE, vec, n, len);
	return upcall_sendmsg(sk, &msg, len);
}

/* Send as kccm_sock_splice() does. */
int kccm_upcall_splice(struct sock *sk, const struct kvec *vec, unsigned int n,
		       unsigned int len, bool more)
{
	struct bio_vec bvec[KCCM_SPLICE_MAX];
	struct msghdr msg = {};

	if (n > ARRAY_SIZE(bvec))
		return -EINVAL;
	prepare_splice(&msg, bvec, vec, n, len, more);
	return upcall_sendmsg(sk, &msg, len);
}

/* Whether the other side has ended its stream, or there was an error. */
bool kccm_upcall_ended(const struct sock *sk)
{
	return sk->sk_state != TCP_ESTABLISHED || READ_ONCE(sk->sk_err) ||
	       (READ_ONCE(sk->sk_shutdown) & RCV_SHUTDOWN);
}

/*
 * Memory that a packet may refer to, which goes when nobody does any more.
 * Where there is no large block, whoever asks has another way.
 */
void *kccm_block_alloc(unsigned int order, bool wait)
{
	gfp_t gfp = (wait ? GFP_KERNEL : GFP_NOWAIT) | __GFP_COMP | __GFP_NOWARN;
	struct page *page = alloc_pages(order ? gfp | __GFP_NORETRY : gfp, order);

	return page ? page_address(page) : NULL;
}

/* Whether anybody else refers to it. */
bool kccm_block_shared(const void *start)
{
	return page_count(virt_to_page(start)) != 1;
}

void kccm_block_put(const void *start)
{
	put_page(virt_to_head_page(start));
}

void kccm_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

bool kccm_spin_trylock_bh(spinlock_t *lock)
{
	return spin_trylock_bh(lock);
}

void kccm_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

void kccm_completion_rearm(struct completion *completion)
{
	reinit_completion(completion);
}

/* Whether softirqs are being served or held off: nothing may sleep. */
bool kccm_in_softirq(void)
{
	return in_softirq();
}

void kccm_bh_disable(void)
{
	local_bh_disable();
}

void kccm_bh_enable(void)
{
	local_bh_enable();
}

struct net *kccm_net_get(struct net *net)
{
	return get_net(net);
}

void kccm_net_put(struct net *net)
{
	put_net(net);
}

struct net *kccm_net_current(void)
{
	return current->nsproxy->net_ns;
}

unsigned int kccm_noio_enter(void)
{
	return memalloc_noio_save();
}

void kccm_noio_leave(unsigned int cookie)
{
	memalloc_noio_restore(cookie);
}

bool kccm_killed(void)
{
	return fatal_signal_pending(current);
}

bool kccm_log_allowed(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}

bool kccm_log_allowed_of_peer(void)
{
	static DEFINE_RATELIMIT_STATE(state, DEFAULT_RATELIMIT_INTERVAL,
				      DEFAULT_RATELIMIT_BURST);

	return __ratelimit(&state);
}
