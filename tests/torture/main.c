// SPDX-License-Identifier: GPL-2.0
/*
 * The work that each node does in `make torture`, and the record of it.
 *
 * Threads send messages to all other nodes and call functions on them, of all
 * kinds and sizes; other threads receive, handlers answer. All of it is written
 * down, for checker.py to judge.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/moduleparam.h>

#include <kccm.h>

#include "torture.h"

static ulong life;
module_param(life, ulong, 0444);
MODULE_PARM_DESC(life, "Which life of this node this is, for its history");

static uint seed;
module_param(seed, uint, 0444);
MODULE_PARM_DESC(seed, "What the choices of this node are made from");

bool sending = true;
module_param(sending, bool, 0644);
MODULE_PARM_DESC(sending, "Whether messages and calls are begun");

bool receiving = true;
module_param(receiving, bool, 0644);
MODULE_PARM_DESC(receiving, "Whether messages are received");

unsigned int pause_us = 4000;
module_param(pause_us, uint, 0644);
MODULE_PARM_DESC(pause_us, "How long a thread rests between two things, on average");

unsigned int max_size = 65536;
module_param(max_size, uint, 0444);
MODULE_PARM_DESC(max_size, "Longest message, and longest arguments of a call");

static int set_final(const char *value, const struct kernel_param *param)
{
	workload_final();
	return 0;
}

static const struct kernel_param_ops final_ops = { .set = set_final };
module_param_cb(final, &final_ops, NULL, 0200);
MODULE_PARM_DESC(final, "Write anything here to have it written down who is up");

static int set_stop(const char *value, const struct kernel_param *param)
{
	workload_stop();
	return 0;
}

/* A module whose handlers run cannot be unloaded. */
static const struct kernel_param_ops stop_ops = { .set = set_stop };
module_param_cb(stop, &stop_ops, NULL, 0200);
MODULE_PARM_DESC(stop, "Write anything here to end the work, before unloading");

static int set_abort(const char *value, const struct kernel_param *param)
{
	return connection_abort(value);
}

static const struct kernel_param_ops abort_ops = { .set = set_abort };
module_param_cb(abort, &abort_ops, NULL, 0200);
MODULE_PARM_DESC(abort, "Write address and port, own ones first, of a connection to reset it");

static void record_this(u8 kind)
{
	record(&(struct history_record){
		.kind = kind,
		.node = kccm_node_id(),
		.number = life,
		.incarnation = kccm_incarnation(),
	});
}

static int __init torture_init(void)
{
	int ret;

	ret = recorder_open();
	if (ret)
		return ret;
	record_this(HISTORY_BEGIN);
	ret = workload_start(seed);
	if (ret) {
		record_this(HISTORY_END);
		recorder_close();
	}
	return ret;
}
module_init(torture_init);

static void __exit torture_exit(void)
{
	workload_stop();
	record_this(HISTORY_END);
	recorder_close();
}
module_exit(torture_exit);

MODULE_DESCRIPTION("Work for KCCM, written down");
MODULE_AUTHOR("The KCCM maintainers");
MODULE_LICENSE("GPL");
