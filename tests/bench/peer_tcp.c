// SPDX-License-Identifier: GPL-2.0
/* The floor: TCP over loopback, between two threads of this kernel. */
#include <linux/in.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "bench.h"
#include "conn.h"

#define FIRST_ROOM	(4 * 1024)

static struct socket *listener;
static struct sockaddr_in address;

static int tcp_connect(struct bench_conn *conn)
{
	int ret;

	ret = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
			       &conn->client);
	if (ret)
		return ret;
	ret = kernel_connect(conn->client, (struct sockaddr_unsized *)&address,
			     sizeof(address), 0);
	if (!ret)
		ret = kernel_accept(listener, &conn->server, 0);
	if (ret)
		return ret;
	tcp_sock_set_nodelay(conn->client->sk);
	tcp_sock_set_nodelay(conn->server->sk);
	return 0;
}

static void tcp_close(struct bench_line *line)
{
	bench_conn_end(line->private);
	kfree(line->private);
}

static int tcp_open(struct bench_line *line)
{
	struct bench_conn *conn = kzalloc_obj(*conn);
	int ret;

	if (!conn)
		return -ENOMEM;
	line->private = conn;
	ret = tcp_connect(conn);
	if (!ret)
		ret = bench_conn_begin(conn, line, FIRST_ROOM);
	if (ret)
		tcp_close(line);
	return ret;
}

static int tcp_call(struct bench_line *line)
{
	return bench_conn_call(line->private);
}

static int tcp_send(struct bench_line *line)
{
	return bench_conn_send(line->private);
}

static void tcp_stop(const struct bench_peer *peer)
{
	sock_release(listener);
}

static int tcp_start(const struct bench_peer *peer, unsigned int nodes)
{
	int ret;

	ret = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
			       &listener);
	if (ret)
		return ret;
	address = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	ret = kernel_bind(listener, (struct sockaddr_unsized *)&address,
			  sizeof(address));
	if (!ret)
		ret = kernel_listen(listener, 1);
	/* Any port that is free. */
	if (!ret)
		ret = kernel_getsockname(listener, (struct sockaddr *)&address);
	if (ret < 0) {
		tcp_stop(peer);
		return ret;
	}
	return 0;
}

const struct bench_peer bench_tcp_peers[] = {
	{
		.name = "tcp",
		.start = tcp_start,
		.stop = tcp_stop,
		.open = tcp_open,
		.close = tcp_close,
		.call = tcp_call,
		.send = tcp_send,
	},
	{}
};
