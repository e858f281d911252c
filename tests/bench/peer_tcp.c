// SPDX-License-Identifier: GPL-2.0
/*
 * The floor: TCP over loopback between two threads of this kernel, each of which
 * blocks in kernel_recvmsg(). A message goes with its header in one
 * kernel_sendmsg().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/in.h>
#include <linux/mm.h>
#include <linux/net.h>
#include <linux/slab.h>
#include <linux/tcp.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "bench.h"

/* What a call and a reply begin with. */
struct head {
	u32 len;
	u32 number;
};

struct tcp_line {
	struct socket *client, *server;
	struct bench_thread *thread;
	u32 number;
	/* The server's, of @room bytes: one message, behind its header. */
	struct head *buf;
	size_t room;
};

#define FIRST_ROOM	(4 * 1024)
#define STREAM_ROOM	(256 * 1024)

static struct socket *listener;
static struct sockaddr_in address;

static int receive(struct socket *sock, void *buf, size_t len, int flags)
{
	struct kvec vec = { .iov_base = buf, .iov_len = len };
	struct msghdr msg = {};

	return kernel_recvmsg(sock, &msg, &vec, 1, len, flags);
}

/* ---- The server. */

/* Make room for @len bytes, and keep the first @got. */
static int make_room(struct tcp_line *tl, size_t len, size_t got)
{
	void *buf;

	if (len <= tl->room)
		return 0;
	buf = kvmalloc(len, GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	memcpy(buf, tl->buf, got);
	kvfree(tl->buf);
	tl->buf = buf;
	tl->room = len;
	return 0;
}

/* Receive one message: its length with its header, or what there is instead. */
static int receive_message(struct tcp_line *tl)
{
	size_t len;
	int got, ret;

	got = receive(tl->server, tl->buf, tl->room, 0);
	if (got <= 0)
		return got;
	if (got < sizeof(struct head))
		return -EBADMSG;
	len = sizeof(struct head) + tl->buf->len;
	if (len > sizeof(struct head) + KCCM_BENCH_MAX_SIZE)
		return -EBADMSG;
	ret = make_room(tl, len, got);
	if (ret)
		return ret;
	if (got < len) {
		ret = receive(tl->server, (void *)tl->buf + got, len - got,
			      MSG_WAITALL);
		if (ret != len - got)
			return ret < 0 ? ret : -EPIPE;
	}
	return len;
}

static void tcp_echo(void *data)
{
	struct bench_line *line = data;
	struct tcp_line *tl = line->private;
	struct kvec vec;
	int len;

	while ((len = receive_message(tl)) > 0) {
		struct msghdr msg = {};

		kccm_bench_serve();
		vec = (struct kvec){ .iov_base = tl->buf, .iov_len = len };
		len = kernel_sendmsg(tl->server, &msg, &vec, 1, len);
		if (len < 0)
			break;
	}
	if (len < 0)
		pr_err("tcp: the server ends: %d\n", len);
}

static void tcp_count(void *data)
{
	struct bench_line *line = data;
	struct tcp_line *tl = line->private;
	int got;

	while ((got = receive(tl->server, tl->buf, tl->room, 0)) > 0)
		WRITE_ONCE(line->received, line->received + got);
	if (got < 0)
		pr_err("tcp: the receiver ends: %d\n", got);
}

/* ---- The client. */

static int tcp_call(struct bench_line *line)
{
	struct tcp_line *tl = line->private;
	struct head head = { .len = line->size, .number = ++tl->number };
	struct kvec out[] = {
		{ .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = line->args, .iov_len = line->size },
	};
	struct kvec in[] = {
		{ .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = line->reply, .iov_len = line->size },
	};
	size_t len = sizeof(head) + line->size;
	struct msghdr msg = {};
	int ret;

	ret = kernel_sendmsg(tl->client, &msg, out, ARRAY_SIZE(out), len);
	if (ret != len)
		return ret < 0 ? ret : -EPIPE;
	msg = (struct msghdr){};
	ret = kernel_recvmsg(tl->client, &msg, in, ARRAY_SIZE(in), len,
			     MSG_WAITALL);
	if (ret != len)
		return ret < 0 ? ret : -EPIPE;
	return head.number == tl->number && head.len == line->size ? 0 :
								     -EBADMSG;
}

static int tcp_send(struct bench_line *line)
{
	struct tcp_line *tl = line->private;
	struct kvec vec = { .iov_base = line->args, .iov_len = line->size };
	struct msghdr msg = {};
	int ret;

	ret = kernel_sendmsg(tl->client, &msg, &vec, 1, line->size);
	if (ret != line->size)
		return ret < 0 ? ret : -EPIPE;
	return 0;
}

/* ---- Lines: a connection and a thread each. */

static void tcp_close(struct bench_line *line)
{
	struct tcp_line *tl = line->private;

	if (tl->client)
		kernel_sock_shutdown(tl->client, SHUT_RDWR);
	if (tl->thread)
		bench_join(tl->thread);
	if (tl->server)
		sock_release(tl->server);
	if (tl->client)
		sock_release(tl->client);
	kvfree(tl->buf);
	kfree(tl);
}

static int tcp_connect(struct tcp_line *tl)
{
	int ret;

	ret = sock_create_kern(&init_net, AF_INET, SOCK_STREAM, IPPROTO_TCP,
			       &tl->client);
	if (ret)
		return ret;
	ret = kernel_connect(tl->client, (struct sockaddr_unsized *)&address,
			     sizeof(address), 0);
	if (!ret)
		ret = kernel_accept(listener, &tl->server, 0);
	if (ret)
		return ret;
	tcp_sock_set_nodelay(tl->client->sk);
	tcp_sock_set_nodelay(tl->server->sk);
	return 0;
}

static int tcp_open(struct bench_line *line)
{
	bool stream = line->use == BENCH_STREAM;
	struct tcp_line *tl = kzalloc_obj(*tl);
	struct bench_thread *thread;
	int ret;

	if (!tl)
		return -ENOMEM;
	line->private = tl;
	ret = make_room(tl, stream ? STREAM_ROOM : FIRST_ROOM, 0);
	if (!ret)
		ret = tcp_connect(tl);
	if (!ret) {
		thread = bench_thread(stream ? tcp_count : tcp_echo, line, "tcp");
		if (IS_ERR(thread))
			ret = PTR_ERR(thread);
		else
			tl->thread = thread;
	}
	if (ret)
		tcp_close(line);
	return ret;
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
	/* Any port is free. */
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
