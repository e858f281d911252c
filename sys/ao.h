/* SPDX-License-Identifier: GPL-2.0 */
/*
 * TCP-AO (RFC 5925) on a socket, and the keyring that its keys come from.
 * bindgen reads this file by way of helpers.h.
 */
#ifndef _KCCM_SYS_AO_H
#define _KCCM_SYS_AO_H

#include <linux/types.h>

struct socket;

/* The longest secret that TCP-AO takes; most keys that a socket is to have. */
#define KCCM_AO_SECRET_MAX	80
#define KCCM_AO_KEYS_MAX	16

/* What became of the segments that came in, and how the keys are used. */
struct kccm_ao_look {
	u64 not_signed;		/* dropped: without a signature */
	u64 mismatched;		/* dropped: signed with another secret */
	u64 unknown;		/* dropped: signed with a key of another id */
	int sends;		/* the key that is signed with, or -1 */
	int asks;		/* the key that the peer is asked to use, or -1 */
	unsigned int nr_keys;
	struct {
		u8 id;
		u64 good;	/* segments that came in signed with it */
	} keys[KCCM_AO_KEYS_MAX];
};

bool kccm_ao_supported(void);
int kccm_sock_ao_require(struct socket *sock);
int kccm_sock_ao_add(struct socket *sock, u8 id, const u8 *secret,
		     unsigned int len, bool use);
int kccm_sock_ao_ask(struct socket *sock, u8 id);
int kccm_sock_ao_forget(struct socket *sock, u8 id);
int kccm_sock_ao_look(struct socket *sock, struct kccm_ao_look *look);

int kccm_key_read(bool logon, const char *description, u8 *buf,
		  unsigned int size);
void kccm_wipe(u8 *buf, unsigned int size);

#endif /* _KCCM_SYS_AO_H */
