// SPDX-License-Identifier: GPL-2.0
/*
 * Calls and messages over two sockets that are connected to each other, between
 * two threads of this kernel, each of which blocks in kernel_recvmsg(). A message
 * goes with its header in one kernel_sendmsg().
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/mm.h>
#include <linux/net.h>

#include "bench.h"
#include "conn.h"

/* What a call and a reply begin with. */
struct conn_head {
	u32 len;
	u32 number;
};

#define STREAM_ROOM	(256 * 1024)

static int receive(struct socket *sock, void *buf, size_t len, int flags)
{
	struct kvec vec = { .iov_base = buf, .iov_len = len };
	struct msghdr msg = {};

	return kernel_recvmsg(sock, &msg, &vec, 1, len, flags);
}

/* Make room for @len bytes, and keep the first @got. */
static int make_room(struct bench_conn *conn, size_t len, size_t got)
{
	void *buf;

	if (len <= conn->room)
		return 0;
	buf = kvmalloc(len, GFP_KERNEL);
	if (!buf)
		return -ENOMEM;
	memcpy(buf, conn->buf, got);
	kvfree(conn->buf);
	conn->buf = buf;
	conn->room = len;
	return 0;
}

/* ---- The server. */

/* Receive one message: its length with its header, or what there is instead. */
static int receive_message(struct bench_conn *conn)
{
	struct conn_head *head;
	size_t len;
	int got, ret;

	got = receive(conn->server, conn->buf, conn->room, 0);
	if (got <= 0)
		return got;
	head = conn->buf;
	if (got < sizeof(*head) || head->len > KCCM_BENCH_MAX_SIZE)
		return -EBADMSG;
	len = sizeof(*head) + head->len;
	ret = make_room(conn, len, got);
	if (ret)
		return ret;
	if (got < len) {
		ret = receive(conn->server, conn->buf + got, len - got,
			      MSG_WAITALL);
		if (ret != len - got)
			return ret < 0 ? ret : -EPIPE;
	}
	return len;
}

static void echo(void *data)
{
	struct bench_conn *conn = data;
	struct kvec vec;
	int len;

	while ((len = receive_message(conn)) > 0) {
		struct msghdr msg = {};

		kccm_bench_serve();
		vec = (struct kvec){ .iov_base = conn->buf, .iov_len = len };
		len = kernel_sendmsg(conn->server, &msg, &vec, 1, len);
		if (len < 0)
			break;
	}
	if (len < 0 && !READ_ONCE(conn->ending))
		pr_err("%s: the server ends: %d\n", conn->line->peer->name, len);
}

static void count(void *data)
{
	struct bench_conn *conn = data;
	struct bench_line *line = conn->line;
	int got;

	while ((got = receive(conn->server, conn->buf, conn->room, 0)) > 0)
		WRITE_ONCE(line->received, line->received + got);
	if (got < 0 && !READ_ONCE(conn->ending))
		pr_err("%s: the receiver ends: %d\n", line->peer->name, got);
}

/* ---- The client. */

int bench_conn_call(struct bench_conn *conn)
{
	struct bench_line *line = conn->line;
	struct conn_head head = { .len = line->size, .number = ++conn->number };
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

	ret = kernel_sendmsg(conn->client, &msg, out, ARRAY_SIZE(out), len);
	if (ret != len)
		return ret < 0 ? ret : -EPIPE;
	msg = (struct msghdr){};
	ret = kernel_recvmsg(conn->client, &msg, in, ARRAY_SIZE(in), len,
			     MSG_WAITALL);
	if (ret != len)
		return ret < 0 ? ret : -EPIPE;
	if (head.number != conn->number || head.len != line->size)
		return -EBADMSG;
	return 0;
}

int bench_conn_send(struct bench_conn *conn)
{
	size_t len = conn->line->size;
	struct kvec vec = { .iov_base = conn->line->args, .iov_len = len };
	struct msghdr msg = {};
	int ret;

	ret = kernel_sendmsg(conn->client, &msg, &vec, 1, len);
	if (ret != len)
		return ret < 0 ? ret : -EPIPE;
	return 0;
}

/* ---- Begin and end. */

/* Serve a line at the sockets of @conn. @room: what a message takes as a rule. */
int bench_conn_begin(struct bench_conn *conn, struct bench_line *line,
		     size_t room)
{
	bool stream = line->use == BENCH_STREAM;
	struct bench_thread *thread;
	int ret;

	conn->line = line;
	ret = make_room(conn, stream ? STREAM_ROOM : room, 0);
	if (ret)
		return ret;
	thread = bench_thread(stream ? count : echo, conn, line->peer->name);
	if (IS_ERR(thread))
		return PTR_ERR(thread);
	conn->thread = thread;
	return 0;
}

/* Also of one that has not begun, or has no sockets. */
void bench_conn_end(struct bench_conn *conn)
{
	WRITE_ONCE(conn->ending, true);
	if (conn->client)
		kernel_sock_shutdown(conn->client, SHUT_RDWR);
	if (conn->thread)
		bench_join(conn->thread);
	if (conn->server)
		sock_release(conn->server);
	if (conn->client)
		sock_release(conn->client);
	kvfree(conn->buf);
}
