// SPDX-License-Identifier: GPL-2.0
/* A peer in user space: TCP over loopback, a thread for each connection. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "main.h"

#define PORT		7801

struct head {
	unsigned int len;
	unsigned int service_us;
};

/* What a connection needs. */
struct conn {
	int fd;
	struct {
		struct head head;
		char data[MAX_SIZE];
	} message;
};

static const struct sockaddr_in address = {
	.sin_family = AF_INET,
	.sin_port = __builtin_bswap16(PORT),
	.sin_addr.s_addr = __builtin_bswap32(INADDR_LOOPBACK),
};

static void no_delay(int fd)
{
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)))
		die("TCP_NODELAY");
}

/* The length of the message with its header, 0 when the caller has gone. */
static size_t receive_message(struct conn *conn)
{
	char *at = (char *)&conn->message;
	size_t len = sizeof(struct head), got;
	ssize_t ret;

	ret = recv(conn->fd, at, sizeof(conn->message), 0);
	if (!ret || (ret < 0 && errno == ECONNRESET))
		return 0;
	got = ret;
	errno = ret < 0 ? errno : 0;
	if (ret < (ssize_t)sizeof(struct head) ||
	    conn->message.head.len > MAX_SIZE)
		die("receiving");
	len += conn->message.head.len;
	if (got < len && recv(conn->fd, at + got, len - got, MSG_WAITALL) !=
				 (ssize_t)(len - got))
		die("receiving");
	return len;
}

static void *serve_conn(void *data)
{
	struct conn *conn = data;
	size_t len;

	while ((len = receive_message(conn))) {
		busy_wait(conn->message.head.service_us);
		if (send(conn->fd, &conn->message, len, MSG_NOSIGNAL) !=
		    (ssize_t)len) {
			if (errno == EPIPE || errno == ECONNRESET)
				break;
			die("replying");
		}
	}
	close(conn->fd);
	free(conn);
	return NULL;
}

static void serve(void)
{
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	pthread_t thread;

	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 },
		       sizeof(int)) ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, SOMAXCONN))
		die("listening");
	ready();
	for (;;) {
		struct conn *conn = calloc(1, sizeof(*conn));

		if (!conn)
			die("memory");
		conn->fd = accept(listener, NULL, NULL);
		if (conn->fd < 0)
			die("accepting");
		no_delay(conn->fd);
		errno = pthread_create(&thread, NULL, serve_conn, conn);
		if (errno)
			die("a thread");
		pthread_detach(thread);
	}
}

static void open_tcp(struct line *line)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		die("connecting (is there a server: bench_tcp serve &)");
	no_delay(fd);
	line->private = (void *)(intptr_t)fd;
}

static void call_tcp(struct line *line)
{
	int fd = (int)(intptr_t)line->private;
	struct head head = { .len = line->size, .service_us = line->service_us };
	struct iovec out[] = {
		{ .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = line->args, .iov_len = line->size },
	};
	struct iovec in[] = {
		{ .iov_base = &head, .iov_len = sizeof(head) },
		{ .iov_base = line->reply, .iov_len = line->size },
	};
	struct msghdr msg = { .msg_iov = out, .msg_iovlen = 2 };
	ssize_t len = sizeof(head) + line->size;

	if (sendmsg(fd, &msg, MSG_NOSIGNAL) != len)
		die("calling");
	msg = (struct msghdr){ .msg_iov = in, .msg_iovlen = 2 };
	if (recvmsg(fd, &msg, MSG_WAITALL) != len)
		die("the reply");
}

const struct peer peer = {
	.serve = serve,
	.open = open_tcp,
	.call = call_tcp,
};
