/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Where the two halves of the benchmark meet: nodes of KCCM, which are in Rust,
 * and what measures them, in C. bindgen reads this file; see Kbuild.
 */
#ifndef _KCCM_BENCH_NODES_H
#define _KCCM_BENCH_NODES_H

#include <linux/types.h>

/* ---- In C. */

int kccm_bench_init(void);
void kccm_bench_exit(void);

/* What every handler and server does with a call before it replies. */
void kccm_bench_serve(void);

/* ---- In Rust. */

/*
 * Handlers that do nothing: each has a reply as long as its arguments, and leaves
 * it as it is. (The peers' servers have what they reply with from receiving it.)
 * Their number is their class; add a class here, in HANDLERS in cluster.rs and in
 * peer_kccm.c.
 */
#define KCCM_BENCH_SHORT	0
#define KCCM_BENCH_LONG		1
#define KCCM_BENCH_SOFTIRQ	2
/* A bit besides: a handler that replies with its arguments. */
#define KCCM_BENCH_ECHO		16

/* The longest message or argument. */
#define KCCM_BENCH_MAX_SIZE	(1024 * 1024)

/*
 * Nodes in this kernel, over loopback. kccm_bench_cluster() connects them;
 * kccm_bench_alone() makes as many clusters of one. Both give an error pointer
 * where they fail.
 */
struct kccm_bench_nodes;
struct kccm_bench_nodes *kccm_bench_cluster(unsigned int count);
struct kccm_bench_nodes *kccm_bench_alone(unsigned int count);
void kccm_bench_stop(struct kccm_bench_nodes *nodes);

/* From node 0 to node 1. */
int kccm_bench_rcall_sync(struct kccm_bench_nodes *nodes, u32 func,
			  const void *args, void *reply, size_t size);
int kccm_bench_rcall(struct kccm_bench_nodes *nodes, u32 func, const void *args,
		     size_t size);
int kccm_bench_send(struct kccm_bench_nodes *nodes, u32 tag, const void *buf,
		    size_t size);
int kccm_bench_send_bulk(struct kccm_bench_nodes *nodes, u32 tag,
			 const void *buf, size_t size);
/* At node 1, from node 0: the length of the message, or an error. */
ssize_t kccm_bench_recv(struct kccm_bench_nodes *nodes, u32 tag, void *buf,
			size_t room);
/* The same in memory of its own, which is freed. */
ssize_t kccm_bench_recv_alloc(struct kccm_bench_nodes *nodes, u32 tag);
/* How many asynchronous calls node 1 has run. */
u64 kccm_bench_ran(struct kccm_bench_nodes *nodes);

#endif /* _KCCM_BENCH_NODES_H */
