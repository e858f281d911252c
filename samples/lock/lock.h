/* SPDX-License-Identifier: GPL-2.0 */
/*
 * kccm_lock: one lock for all nodes of a cluster, and a counter that shows it.
 *
 *   ricart_agrawala.c  the lock: the algorithm, and who takes part in it
 *   counter.c          what is done under it: a counter with a copy on every node
 *   device.c           how both are used: /dev/kccm_lock, debugfs, the module
 */
#ifndef _KCCM_LOCK_H
#define _KCCM_LOCK_H

#include <linux/bits.h>
#include <linux/list.h>
#include <linux/mutex.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include <kccm.h>

/* What nodes call on each other, all of it of the short class. */
enum lock_func {
	LOCK_HELLO = 0x6c6f636b,
	LOCK_GOODBYE,
	LOCK_REQUEST,
	LOCK_REPLY,
	COUNTER_READ,
	COUNTER_WRITE,
	COUNTER_DONE,
};

/*
 * A time stamp is a sequence number and, below it, the id of the node that
 * made it: no two are equal, and comparing them is comparing numbers. They are
 * printed as "sequence.node".
 */
#define STAMP_NODE_BITS		8

static inline u64 make_stamp(u64 seq, u32 node)
{
	return seq << STAMP_NODE_BITS | node;
}

static inline u64 stamp_seq(u64 stamp)
{
	return stamp >> STAMP_NODE_BITS;
}

static inline u32 stamp_node(u64 stamp)
{
	return stamp & (BIT(STAMP_NODE_BITS) - 1);
}

/**
 * struct view - a set of nodes
 * @bits: of node i, bit i % 8 of byte i / 8
 */
struct view {
	u8 bits[KCCM_MAX_NODES / 8];
};

/**
 * struct counter - the counter, as it is kept and as it is sent
 * @stamp: the request under which it was written
 * @value: how far it has been counted
 * @by: what each node has to do with that
 * @by.count: how often it has incremented the counter
 * @by.acked: how many of its increments it has seen completed
 * @by.runs: how often it has begun: by loading this module, and incrementing
 */
struct counter {
	__le64 stamp;
	__le64 value;
	struct {
		__le64 count;
		__le64 acked;
		__le64 runs;
	} __packed by[];
} __packed;

/**
 * struct peer - another node, as the lock sees it
 * @list: in dlock.all
 * @id: its id
 * @in: it takes part
 * @settled: it says that it may enter
 * @replied: it has replied to the present request
 * @written: it has been sent what is being written (counter.c)
 * @wants: the stamp of its request that has not been replied to, or 0
 * @incarnation: the run of it that takes part, or did last
 * @made: when it made the hello that @view and @settled are from
 * @view: who takes part, as it says
 * @owed: what is to be sent to it, bits of enum owed
 */
struct peer {
	struct list_head list;
	u32 id;
	bool in;
	bool settled;
	bool replied;
	bool written;
	u64 wants;
	u64 incarnation;
	u64 made;
	struct view view;
	unsigned long owed;
};

/**
 * struct claim - somebody of this node who wants the lock, or has it
 * @list: in the node's claims; empty for who does not want it
 * @granted: it has the lock
 * @stamp: with which it got it: greater than that of whoever had it before
 */
struct claim {
	struct list_head list;
	bool granted;
	u64 stamp;
};

/**
 * struct dlock - the lock, as this node sees it
 * @mutex: protects all of this, peers and the copy of the counter included.
 *	Whoever holds it sends without waiting, if at all
 * @granted: where claims wait
 * @me: this node's id
 * @nr_ids: one more than the greatest id in the cluster
 * @nr_nodes: how many nodes the cluster has
 * @quorum: how many of them must take part for one to enter
 * @view: who takes part, this node among them
 * @highest: the greatest sequence number that this node has heard of
 * @request: the stamp of this node's request, or 0 if it does not want in
 * @held: this node is in
 * @settled: this node may enter
 * @leaving: the module is being unloaded
 * @claims: whom of this node the lock is for, first come, first served
 * @retry: sends what could not be sent at once
 * @hello: room for a hello, to send it
 * @hello_size: its length
 * @requests: how many requests this node has made
 * @entries: how often it was in
 * @deferred: how many replies it has put off
 * @all: the other nodes
 * @peers: they are here, by id
 */
struct dlock {
	struct mutex mutex;	/* see above */
	wait_queue_head_t granted;
	u32 me;
	u32 nr_ids;
	u32 nr_nodes;
	u32 quorum;
	struct view view;
	u64 highest;
	u64 request;
	bool held;
	bool settled;
	bool leaving;
	struct list_head claims;
	struct delayed_work retry;
	struct hello *hello;
	size_t hello_size;
	u64 requests;
	u64 entries;
	u64 deferred;
	struct list_head all;
	struct peer peers[KCCM_MAX_NODES];
};

extern struct dlock dlock;

static inline bool view_has(const struct view *view, u32 id)
{
	return view->bits[id / 8] & BIT(id % 8);
}

struct seq_file;

/* ricart_agrawala.c */
void dlock_claim(struct claim *claim);
void dlock_release(struct claim *claim);
void dlock_show(struct seq_file *seq);
int dlock_init(unsigned int quorum);
int dlock_start(void);
void dlock_stop(void);
void dlock_exit(void);
int register_handlers(const struct kccm_handler *handlers, unsigned int count);
void unregister_handlers(const struct kccm_handler *handlers, unsigned int count);

/* counter.c */
size_t counter_size(void);
void counter_get(struct counter *to);
void counter_merge(const struct counter *from);
int counter_run(u64 increments);
void counter_stop(void);
void counter_show(struct seq_file *seq);
int counter_init(void);
void counter_exit(void);

#endif /* _KCCM_LOCK_H */
