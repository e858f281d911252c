// SPDX-License-Identifier: GPL-2.0
/*
 * A peer in user space: ONC RPC over TCP, libtirpc's client and server with the
 * stubs that rpcgen makes of echo.x. The kernel's client calls the same server.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "echo.h"
#include "main.h"

#define PORT		7802

static const struct sockaddr_in address = {
	.sin_family = AF_INET,
	.sin_port = __builtin_bswap16(PORT),
	.sin_addr.s_addr = __builtin_bswap32(INADDR_LOOPBACK),
};

/* ---- The server. */

bool_t echo_1_svc(echo_args *args, echo_reply *reply, struct svc_req *request)
{
	(void)request;
	busy_wait(args->service_us);
	/* It is encoded before the arguments are freed. */
	reply->data.data_len = args->data.data_len;
	reply->data.data_val = args->data.data_val;
	return TRUE;
}

/* What a reply has is the arguments'. */
int bench_program_1_freeresult(SVCXPRT *transport, xdrproc_t xdr, caddr_t reply)
{
	(void)transport;
	(void)xdr;
	(void)reply;
	return 1;
}

static void serve(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	SVCXPRT *transport;

	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(fd, SOMAXCONN))
		die("listening");
	transport = svc_vc_create(fd, 0, 0);
	/* Without a protocol rpcbind is not told. */
	if (!transport || !svc_reg(transport, BENCH_PROGRAM, BENCH_VERSION,
				   bench_program_1, NULL))
		die("the server");
	ready();
	svc_run();
	die("the server ended");
}

/* ---- The client. */

static void open_rpc(struct line *line)
{
	struct sockaddr_in to = address;
	struct netbuf netbuf = {
		.buf = &to, .len = sizeof(to), .maxlen = sizeof(to),
	};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	if (connect(fd, (struct sockaddr *)&to, sizeof(to)))
		die("connecting (is there a server: bench_rpc serve &)");
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)))
		die("TCP_NODELAY");
	line->private = clnt_vc_create(fd, &netbuf, BENCH_PROGRAM,
				       BENCH_VERSION, 0, 0);
	if (!line->private)
		die(clnt_spcreateerror("the client"));
}

static void call_rpc(struct line *line)
{
	/* What is received goes straight to where it belongs. */
	echo_reply reply = {
		.data = { .data_len = line->size, .data_val = line->reply },
	};
	echo_args args = {
		.service_us = line->service_us,
		.data = { .data_len = line->size, .data_val = line->args },
	};
	enum clnt_stat status = echo_1(&args, &reply, line->private);

	errno = 0;
	if (status != RPC_SUCCESS || reply.data.data_len != line->size)
		die(clnt_sperrno(status));
}

const struct peer peer = {
	.serve = serve,
	.open = open_rpc,
	.call = call_rpc,
};
