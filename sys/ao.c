// SPDX-License-Identifier: GPL-2.0
/*
 * Bodies of ao.h.  Which keys a socket has, and when, is decided in Rust; here
 * is how to tell the kernel.
 */
#include <linux/err.h>
#include <linux/key.h>
#include <linux/sockptr.h>
#include <linux/string.h>
#include <linux/tcp.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "ao.h"

#ifdef CONFIG_TCP_AO

/*
 * Nodes of one cluster must agree on these.  The length is what RFC 5925 gives
 * as typical, and leaves room for the other options.
 */
#define ALGORITHM	"hmac(sha256)"
#define MAC_LENGTH	12

static_assert(KCCM_AO_SECRET_MAX == TCP_AO_MAXKEYLEN);

bool kccm_ao_supported(void)
{
	return true;
}

static int set(struct socket *sock, int name, void *cmd, int len)
{
	return READ_ONCE(sock->ops)->setsockopt(sock, SOL_TCP, name,
						KERNEL_SOCKPTR(cmd), len);
}

/* A key is for whoever has it: an address of zeros, of which none has to match. */
static void for_anyone(struct socket *sock, struct __kernel_sockaddr_storage *addr)
{
	addr->ss_family = sock->sk->sk_family;
}

/* From now on nothing passes that is not signed.  The counters stay. */
int kccm_sock_ao_require(struct socket *sock)
{
	struct tcp_ao_info_opt cmd = { .ao_required = 1 };

	return set(sock, TCP_AO_INFO, &cmd, sizeof(cmd));
}

/* @use: sign with it, and ask the peer to; for a socket that does not listen. */
int kccm_sock_ao_add(struct socket *sock, u8 id, const u8 *secret,
		     unsigned int len, bool use)
{
	struct tcp_ao_add cmd = {
		.alg_name = ALGORITHM,
		.set_current = use,
		.set_rnext = use,
		.sndid = id,
		.rcvid = id,
		.maclen = MAC_LENGTH,
		.keylen = len,
	};
	int ret;

	if (len > sizeof(cmd.key))
		return -EINVAL;
	for_anyone(sock, &cmd.addr);
	memcpy(cmd.key, secret, len);
	ret = set(sock, TCP_AO_ADD_KEY, &cmd, sizeof(cmd));
	memzero_explicit(&cmd, sizeof(cmd));
	return ret;
}

/* The peer follows when it has that key, and has us use it by asking in turn. */
int kccm_sock_ao_ask(struct socket *sock, u8 id)
{
	struct tcp_ao_info_opt cmd = {
		.ao_required = 1,
		.set_rnext = 1,
		.rnext = id,
	};

	return set(sock, TCP_AO_INFO, &cmd, sizeof(cmd));
}

/* -EBUSY while the socket signs with it or asks for it. */
int kccm_sock_ao_forget(struct socket *sock, u8 id)
{
	struct tcp_ao_del cmd = {
		.sndid = id,
		.rcvid = id,
		.del_async = READ_ONCE(sock->sk->sk_state) == TCP_LISTEN,
	};

	for_anyone(sock, &cmd.addr);
	return set(sock, TCP_AO_DEL_KEY, &cmd, sizeof(cmd));
}

/* getsockopt() would copy the secrets as well. */
int kccm_sock_ao_look(struct socket *sock, struct kccm_ao_look *look)
{
	struct sock *sk = sock->sk;
	struct tcp_ao_key *key;
	struct tcp_ao_info *ao;
	int ret = 0;

	memset(look, 0, sizeof(*look));
	look->sends = -1;
	look->asks = -1;
	lock_sock(sk);
	ao = rcu_dereference_protected(tcp_sk(sk)->ao_info,
				       lockdep_sock_is_held(sk));
	if (!ao) {
		ret = -ENOENT;
		goto out;
	}
	look->not_signed = atomic64_read(&ao->counters.ao_required);
	look->mismatched = atomic64_read(&ao->counters.pkt_bad);
	look->unknown = atomic64_read(&ao->counters.key_not_found);
	/* One that listens has none of these two, whatever stands there. */
	if (sk->sk_state != TCP_LISTEN) {
		key = READ_ONCE(ao->current_key);
		if (key)
			look->sends = key->sndid;
		key = READ_ONCE(ao->rnext_key);
		if (key)
			look->asks = key->rcvid;
	}
	hlist_for_each_entry_rcu(key, &ao->head, node, lockdep_sock_is_held(sk)) {
		if (look->nr_keys == ARRAY_SIZE(look->keys))
			break;
		look->keys[look->nr_keys].id = key->rcvid;
		look->keys[look->nr_keys].good = atomic64_read(&key->pkt_good);
		look->nr_keys++;
	}
out:
	release_sock(sk);
	return ret;
}

#else /* !CONFIG_TCP_AO */

bool kccm_ao_supported(void)
{
	return false;
}

int kccm_sock_ao_require(struct socket *sock)
{
	return -EOPNOTSUPP;
}

int kccm_sock_ao_add(struct socket *sock, u8 id, const u8 *secret,
		     unsigned int len, bool use)
{
	return -EOPNOTSUPP;
}

int kccm_sock_ao_ask(struct socket *sock, u8 id)
{
	return -EOPNOTSUPP;
}

int kccm_sock_ao_forget(struct socket *sock, u8 id)
{
	return -EOPNOTSUPP;
}

int kccm_sock_ao_look(struct socket *sock, struct kccm_ao_look *look)
{
	return -EOPNOTSUPP;
}

#endif /* CONFIG_TCP_AO */

#ifdef CONFIG_KEYS

#include <keys/user-type.h>

/*
 * Read a key that the calling process finds in its keyrings, as far as @buf
 * has room.  Returns its length, or -ENOKEY when there is none.
 */
int kccm_key_read(bool logon, const char *description, u8 *buf,
		  unsigned int size)
{
	const struct user_key_payload *payload;
	struct key *key;
	int ret;

	/* Nobody is asked to make one. */
	key = request_key(logon ? &key_type_logon : &key_type_user, description,
			  NULL);
	if (IS_ERR(key))
		return PTR_ERR(key);
	down_read(&key->sem);
	ret = key_validate(key);
	if (!ret) {
		payload = user_key_payload_locked(key);
		if (payload) {
			ret = payload->datalen;
			memcpy(buf, payload->data,
			       min_t(unsigned int, size, payload->datalen));
		} else {
			ret = -EKEYREVOKED;
		}
	}
	up_read(&key->sem);
	key_put(key);
	return ret;
}

#else /* !CONFIG_KEYS */

int kccm_key_read(bool logon, const char *description, u8 *buf,
		  unsigned int size)
{
	return -EOPNOTSUPP;
}

#endif /* CONFIG_KEYS */

void kccm_wipe(u8 *buf, unsigned int size)
{
	memzero_explicit(buf, size);
}
