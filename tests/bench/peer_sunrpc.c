// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's own SunRPC client, as NFS uses it, with a server in user space:
 * "bench_rpc serve", which is to run before this peer is started. Arguments and
 * replies are in pages, which are sent without being copied. All lines share a
 * connection.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cred.h>
#include <linux/err.h>
#include <linux/in.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/sunrpc/clnt.h>
#include <linux/sunrpc/xprtsock.h>
#include <net/net_namespace.h>

#include "bench.h"

/* As in user/echo.x and user/bench_rpc.c. */
#define ECHO_PROGRAM	0x20004b43
#define ECHO_VERSION	1
#define ECHO_PROC	1
#define ECHO_PORT	7802

#define MAX_PAGES	DIV_ROUND_UP(KCCM_BENCH_MAX_SIZE, PAGE_SIZE)

/* In XDR's words: what the call takes and the length; the length. */
#define ECHO_ARGS_SZ	2
#define ECHO_REPLY_SZ	1
#define PAD_SZ		1

struct sunrpc_line {
	struct page *args[MAX_PAGES], *reply[MAX_PAGES];
	const void *filled;	/* what @args hold */
	u32 size;
};

static struct rpc_clnt *client;

/* ---- The program. */

static void encode_args(struct rpc_rqst *req, struct xdr_stream *xdr,
			const void *data)
{
	struct sunrpc_line *sl = (struct sunrpc_line *)data;
	__be32 *p = xdr_reserve_space(xdr, ECHO_ARGS_SZ * sizeof(*p));

	p[0] = cpu_to_be32(bench_service_us);
	p[1] = cpu_to_be32(sl->size);
	xdr_write_pages(xdr, sl->args, 0, sl->size);
	rpc_prepare_reply_pages(req, sl->reply, 0, sl->size, ECHO_REPLY_SZ);
}

static int decode_reply(struct rpc_rqst *req, struct xdr_stream *xdr,
			void *data)
{
	struct sunrpc_line *sl = data;
	__be32 *p = xdr_inline_decode(xdr, ECHO_REPLY_SZ * sizeof(*p));

	if (!p || be32_to_cpu(*p) != sl->size ||
	    xdr_read_pages(xdr, sl->size) != sl->size)
		return -EIO;
	return 0;
}

static const struct rpc_procinfo procedures[] = {
	[ECHO_PROC] = {
		.p_proc = ECHO_PROC,
		.p_encode = encode_args,
		.p_decode = decode_reply,
		.p_arglen = ECHO_ARGS_SZ + PAD_SZ,
		.p_replen = ECHO_REPLY_SZ + PAD_SZ,
		.p_statidx = ECHO_PROC,
		.p_name = "ECHO",
	},
};

static unsigned int counts[ARRAY_SIZE(procedures)];

static const struct rpc_version version = {
	.number = ECHO_VERSION,
	.nrprocs = ARRAY_SIZE(procedures),
	.procs = procedures,
	.counts = counts,
};

static const struct rpc_version *versions[] = {
	[ECHO_VERSION] = &version,
};

static const struct rpc_program program;

static struct rpc_stat stats = {
	.program = &program,
};

static const struct rpc_program program = {
	.name = "kccm_bench",
	.number = ECHO_PROGRAM,
	.nrvers = ARRAY_SIZE(versions),
	.version = versions,
	.stats = &stats,
};

/* ---- Lines. */

static void sunrpc_close(struct bench_line *line)
{
	struct sunrpc_line *sl = line->private;
	int i;

	for (i = 0; i < MAX_PAGES; i++) {
		if (sl->args[i])
			put_page(sl->args[i]);
		if (sl->reply[i])
			put_page(sl->reply[i]);
	}
	kvfree(sl);
}

static int sunrpc_open(struct bench_line *line)
{
	struct sunrpc_line *sl = kvzalloc_obj(*sl);

	line->private = sl;
	return sl ? 0 : -ENOMEM;
}

/* Copy between pages and a buffer. */
static void copy_pages(struct page **pages, void *buf, size_t size, bool fill)
{
	size_t at, len;

	for (at = 0; at < size; at += len) {
		void *page = page_address(pages[at / PAGE_SIZE]);

		len = min(size - at, PAGE_SIZE);
		if (fill)
			memcpy(page, buf + at, len);
		else
			memcpy(buf + at, page, len);
	}
}

/* Make the pages what a line wants to send. */
static int fill_pages(struct sunrpc_line *sl, struct bench_line *line)
{
	int i;

	for (i = 0; i < DIV_ROUND_UP(line->size, PAGE_SIZE); i++) {
		sl->args[i] = sl->args[i] ?: alloc_page(GFP_KERNEL);
		sl->reply[i] = sl->reply[i] ?: alloc_page(GFP_KERNEL);
		if (!sl->args[i] || !sl->reply[i])
			return -ENOMEM;
	}
	copy_pages(sl->args, line->args, line->size, true);
	sl->filled = line->args;
	sl->size = line->size;
	return 0;
}

static int sunrpc_call(struct bench_line *line)
{
	struct sunrpc_line *sl = line->private;
	struct rpc_message msg = {
		.rpc_proc = &procedures[ECHO_PROC],
		.rpc_argp = sl,
		.rpc_resp = sl,
	};
	int ret = 0;

	if (sl->filled != line->args || sl->size != line->size)
		ret = fill_pages(sl, line);
	return ret ?: rpc_call_sync(client, &msg, RPC_TASK_SOFT);
}

static void sunrpc_fetch(struct bench_line *line)
{
	struct sunrpc_line *sl = line->private;

	copy_pages(sl->reply, line->reply, line->size, false);
}

/* ---- Start and stop. */

static int sunrpc_start(const struct bench_peer *peer, unsigned int nodes)
{
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons(ECHO_PORT),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	const struct rpc_timeout timeout = {
		.to_initval = 20 * HZ,
		.to_maxval = 20 * HZ,
	};
	struct rpc_create_args args = {
		.net = &init_net,
		.protocol = XPRT_TRANSPORT_TCP,
		.address = (struct sockaddr *)&address,
		.addrsize = sizeof(address),
		.timeout = &timeout,
		.servername = "localhost",
		.program = &program,
		.version = ECHO_VERSION,
		.authflavor = RPC_AUTH_NULL,
		.flags = RPC_CLNT_CREATE_NONPRIVPORT,
		.cred = current_cred(),
	};
	struct rpc_clnt *clnt = rpc_create(&args);

	if (IS_ERR(clnt)) {
		pr_err("sunrpc: no server: run \"bench_rpc serve &\" first\n");
		return PTR_ERR(clnt);
	}
	client = clnt;
	return 0;
}

static void sunrpc_stop(const struct bench_peer *peer)
{
	rpc_shutdown_client(client);
}

const struct bench_peer bench_sunrpc_peers[] = {
	{
		.name = "sunrpc",
		.start = sunrpc_start,
		.stop = sunrpc_stop,
		.open = sunrpc_open,
		.close = sunrpc_close,
		.call = sunrpc_call,
		.fetch = sunrpc_fetch,
	},
	{}
};
