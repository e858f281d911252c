/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What kccm_torture.ko writes down, for checker.py; history.py says the same.
 *
 * The history of a machine is a ring of records in memory that it shares with
 * its host (an ivshmem device). What is written there outlives the machine at
 * whatever point it is ended, so a record that is written before an action is
 * known of even if the machine does not survive the action.
 */
#ifndef _KCCM_TORTURE_HISTORY_H
#define _KCCM_TORTURE_HISTORY_H

#include <linux/types.h>

#define HISTORY_MAGIC	0x79726f747369684bULL

/* Where the records begin in the shared memory. */
#define HISTORY_OFFSET	4096

/* The beginning of the shared memory. Little endian, as the machine is. */
struct history_ring {
	__u64 magic;
	__u32 record_size;
	__u32 capacity;		/* in records */
	__u64 head;		/* how many were ever written; the guest's */
	__u64 lost;		/* how many found no room; the guest's */
	__u64 tail;		/* how many were taken out; the host's */
};

/*
 * What happened. Operations have a number that is theirs alone within one
 * incarnation, from 1. SEND, CALL, SYNC and CONFIRM are written before the
 * function is called, SENT, CALLED, REPLIED and CONFIRMED after it has returned.
 */
enum history_kind {
	HISTORY_BEGIN = 1,	/* loaded: number: which time, incarnation: own */
	HISTORY_READY = 2,	/* all handlers are registered */
	HISTORY_UP = 3,		/* the subscriber hears of node, incarnation */
	HISTORY_DOWN = 4,
	HISTORY_SEND = 5,	/* to node, tag, number, length, crc */
	HISTORY_SENT = 6,	/* number, result */
	/*
	 * From node, tag; number, incarnation, length, crc: as it came;
	 * result: how many records were written since kccm_recv() was called,
	 * this one among them.
	 */
	HISTORY_RECV = 7,
	HISTORY_CALL = 8,	/* as SEND; tag: function */
	HISTORY_CALLED = 9,
	HISTORY_SYNC = 10,	/* as CALL */
	/*
	 * number, result; incarnation: of who ran it; length, crc: of the
	 * arguments, both as the reply says.
	 */
	HISTORY_REPLIED = 11,
	HISTORY_RUN = 12,	/* a handler begins: as RECV */
	HISTORY_STOP = 13,	/* handlers are about to be taken back */
	HISTORY_CONFIRM = 14,	/* as SEND, with kccm_send_sync() */
	HISTORY_CONFIRMED = 15,
	/* The end, all being quiet; node, incarnation: up, 0 if it is not. */
	HISTORY_FINAL = 16,
	HISTORY_END = 17,	/* unloaded */
};

/* Flags of RECV, RUN and REPLIED: what is wrong with what came. */
#define HISTORY_MANGLED		1	/* makes no sense */
#define HISTORY_ASTRAY		2	/* belongs elsewhere */
#define HISTORY_STATUS		4	/* the status is not what was to come */
#define HISTORY_CONTEXT		8	/* run as handlers of its class are not */
/* Not a fault, of RUN: the handler ran in softirq context. */
#define HISTORY_SOFTIRQ		16

struct history_record {
	__u8 kind;
	__u8 node;
	__u8 tag;
	__u8 flags;
	__s32 result;
	__u64 number;
	__u64 incarnation;
	__u32 length;
	__u32 crc;
};

/* Tags of messages, and after them functions, as the history names them. */
enum history_tag {
	TAG_READY = 0,		/* my handlers are registered */
	TAG_ANY = 1,		/* received from any node */
	TAG_PROBED = 2,		/* probed for, then received */
	TAG_EACH = 3,		/* received from each node by a thread of its own */
	TAG_BULK = 4,		/* sent with kccm_send_bulk() */
	TAG_MESSAGES = 5,	/* how many there are */
	FUNC_SHORT = 16,
	FUNC_BRIEF = 17,	/* short, too */
	FUNC_LONG = 18,
	FUNC_SLOW = 19,		/* long, and takes its time */
	FUNC_SOFTIRQ = 20,
};

#endif /* _KCCM_TORTURE_HISTORY_H */
