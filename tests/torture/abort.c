// SPDX-License-Identifier: GPL-2.0
/*
 * Resets a connection of this machine, wherever its two ends are at that
 * moment: this end finds it aborted, the other one reset. With TCP-AO nobody
 * else can: a reset that is not signed is not believed.
 */
#include <linux/inet.h>
#include <linux/rcupdate.h>
#include <net/inet_hashtables.h>
#include <net/tcp.h>

#include "torture.h"

int connection_abort(const char *which)
{
	char own[INET_ADDRSTRLEN], others[INET_ADDRSTRLEN];
	u16 own_port, others_port;
	__be32 local, remote;
	struct sock *sk;
	int ret = -ENOTCONN;

	if (sscanf(which, "%15s %hu %15s %hu", own, &own_port, others,
		   &others_port) != 4 ||
	    !in4_pton(own, -1, (u8 *)&local, -1, NULL) ||
	    !in4_pton(others, -1, (u8 *)&remote, -1, NULL))
		return -EINVAL;
	rcu_read_lock();
	sk = __inet_lookup_established(&init_net, remote, htons(others_port),
				       local, own_port, 0, 0);
	rcu_read_unlock();
	if (!sk)
		return -ENOENT;
	/* One that is ending anyway is left alone. */
	if (READ_ONCE(sk->sk_state) == TCP_ESTABLISHED)
		ret = tcp_abort(sk, ECONNABORTED);
	sock_gen_put(sk);
	return ret;
}
