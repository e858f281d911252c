/* SPDX-License-Identifier: GPL-2.0 */
/* What the parts of kccm_torture.ko share. */
#ifndef _KCCM_TORTURE_H
#define _KCCM_TORTURE_H

#include <linux/types.h>

#include "history.h"

/*
 * recorder.c: the history, in memory that outlives this machine. What writes it
 * may be called in any context.
 */
int recorder_open(void);
void recorder_close(void);
/* From its return on, the record cannot be lost. */
void record(const struct history_record *record);
/* The same, with the number of records from that one on as its result. */
void record_since(struct history_record *record, u64 since);
/* How many records there are. */
u64 recorded(void);
/* Whether the host lags behind in taking records out. */
bool recorder_crowded(void);

/* workload.c: sends, calls, receives, answers. */
int workload_start(u32 seed);
void workload_stop(void);
/* Writes down who is up. */
void workload_final(void);

/*
 * abort.c: resets the connection between two addresses and ports, as in
 * "10.1.0.2 7700 10.1.0.1 35000", own ones first. -ENOENT or -ENOTCONN if there
 * is none, or it is ending.
 */
int connection_abort(const char *which);

/* main.c: parameters. */
extern bool sending;
extern bool receiving;
extern unsigned int pause_us;
extern unsigned int max_size;

#endif /* _KCCM_TORTURE_H */
