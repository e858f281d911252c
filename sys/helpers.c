// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of helpers.h: one kernel macro, inline function or group of struct
 * sock fields each.  Nothing is decided here.
 */
#include <linux/nsproxy.h>
#include <linux/ratelimit.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp_states.h>

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
		hook->readable(hook->ctx);
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
 * Allocate for this socket as the callers may: they can be writing back pages.
 * The per-task page fragment would be shared with whatever the task was doing.
 */
void kccm_sock_prepare(struct socket *sock)
{
	struct sock *sk = sock->sk;

	/*
	 * Hold the namespace as a user's socket does. Without that, closing
	 * stops the timers, and what is still to be sent is never sent again.
	 */
	if (!sk->sk_net_refcnt)
		sk_net_refcnt_upgrade(sk);
	sk->sk_allocation = GFP_NOIO;
	sk->sk_use_task_frag = false;
	sock_set_reuseaddr(sk);
	if (sk->sk_type == SOCK_STREAM && sk->sk_protocol == IPPROTO_TCP)
		tcp_sock_set_nodelay(sk);
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
