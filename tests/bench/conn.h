/* SPDX-License-Identifier: GPL-2.0 */
/* Conversations over sockets. */
#ifndef _KCCM_BENCH_CONN_H
#define _KCCM_BENCH_CONN_H

#include <linux/types.h>

struct socket;
struct bench_line;
struct bench_thread;

/* Two sockets that are connected, and the thread that has the second. */
struct bench_conn {
	struct socket *client, *server;
	struct bench_line *line;
	struct bench_thread *thread;
	bool ending;
	u32 number;			/* of the last call */
	/* The server's, for @room bytes: one message with its header. */
	void *buf;
	size_t room;
};

int bench_conn_begin(struct bench_conn *conn, struct bench_line *line,
		     size_t room);
void bench_conn_end(struct bench_conn *conn);
int bench_conn_call(struct bench_conn *conn);
int bench_conn_send(struct bench_conn *conn);

#endif /* _KCCM_BENCH_CONN_H */
