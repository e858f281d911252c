/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the Rust half cannot reach by itself: macros, inline functions and the
 * fields of struct sock.  bindgen reads this file; see Kbuild.
 */
#ifndef _KCCM_SYS_HELPERS_H
#define _KCCM_SYS_HELPERS_H

#include <linux/spinlock_types.h>
#include <linux/types.h>

#include "ao.h"

struct completion;
struct net;
struct sock;
struct socket;

/* The most buffers that one of the functions that splice takes. */
#define KCCM_SPLICE_MAX 32

/*
 * A socket's upcalls.  They run in softirq context, or in process context with
 * bottom halves off, under the socket's sk_callback_lock: they must not sleep.
 */
struct kccm_sock_hook {
	void *ctx;
	/* data, end of file, or a connection */
	void (*readable)(void *ctx, struct sock *sk);
	void (*writable)(void *ctx);	/* room to send again */
	void (*changed)(void *ctx);	/* connected, or closing */
	struct sock *sk;		/* NULL while not installed */
	void (*saved_data_ready)(struct sock *sk);
	void (*saved_write_space)(struct sock *sk);
	void (*saved_state_change)(struct sock *sk);
};

void kccm_sock_hook_install(struct socket *sock, struct kccm_sock_hook *hook);
void kccm_sock_hook_remove(struct kccm_sock_hook *hook);
void kccm_sock_unhook_child(struct socket *sock,
			    const struct kccm_sock_hook *parent);

void kccm_sock_prepare(struct socket *sock);
void kccm_sock_trim(struct socket *sock);
void kccm_sock_make_room(struct socket *sock, unsigned int len);
void kccm_sock_reset_on_close(struct socket *sock);
int kccm_sock_status(struct socket *sock);
struct kvec;
int kccm_sock_splice(struct socket *sock, const struct kvec *vec,
		     unsigned int n, unsigned int len, bool more);
bool kccm_sock_unread(struct socket *sock);
bool kccm_sock_pending(struct socket *sock);
bool kccm_sock_settled(struct socket *sock);
u32 kccm_sock_acknowledged(struct socket *sock);
void kccm_sock_release(struct socket *sock);

/* Within the readable() upcall of a socket that is connected, and only there. */
unsigned int kccm_upcall_peek(struct sock *sk, void *buf, unsigned int len);
bool kccm_upcall_empty(const struct sock *sk);
int kccm_upcall_copy(struct sock *sk, unsigned int skip, void *buf,
		     unsigned int len);
bool kccm_upcall_await(struct sock *sk, unsigned int len);
int kccm_upcall_pass(struct sock *sk, unsigned int len);
int kccm_upcall_send(struct sock *sk, struct kvec *vec, unsigned int n,
		     unsigned int len, bool more);
int kccm_upcall_splice(struct sock *sk, const struct kvec *vec, unsigned int n,
		       unsigned int len, bool more);
bool kccm_upcall_ended(const struct sock *sk);

void *kccm_block_alloc(unsigned int order, bool wait);
bool kccm_block_shared(const void *start);
void kccm_block_put(const void *start);

void kccm_spin_lock_bh(spinlock_t *lock);
bool kccm_spin_trylock_bh(spinlock_t *lock);
void kccm_spin_unlock_bh(spinlock_t *lock);

void kccm_completion_rearm(struct completion *completion);

bool kccm_in_softirq(void);
void kccm_bh_disable(void);
void kccm_bh_enable(void);

struct net *kccm_net_get(struct net *net);
void kccm_net_put(struct net *net);
struct net *kccm_net_current(void);

unsigned int kccm_noio_enter(void);
void kccm_noio_leave(unsigned int cookie);
bool kccm_killed(void);
bool kccm_log_allowed(void);
bool kccm_log_allowed_of_peer(void);

#endif /* _KCCM_SYS_HELPERS_H */
