// SPDX-License-Identifier: GPL-2.0
/*
 * What a Rust module cannot say itself: which of its functions are exported,
 * and parameters that are text.
 */
#include <linux/export.h>
#include <linux/moduleparam.h>

#include <kccm.h>

#include "sys/params.h"

EXPORT_SYMBOL_GPL(kccm_send);
EXPORT_SYMBOL_GPL(kccm_send_sync);
EXPORT_SYMBOL_GPL(kccm_send_bulk);
EXPORT_SYMBOL_GPL(kccm_recv);
EXPORT_SYMBOL_GPL(kccm_recv_alloc);
EXPORT_SYMBOL_GPL(kccm_probe);
EXPORT_SYMBOL_GPL(kccm_register_handler);
EXPORT_SYMBOL_GPL(kccm_unregister_handler);
EXPORT_SYMBOL_GPL(kccm_rcall);
EXPORT_SYMBOL_GPL(kccm_rcall_sync);
EXPORT_SYMBOL_GPL(kccm_node_id);
EXPORT_SYMBOL_GPL(kccm_incarnation);
EXPORT_SYMBOL_GPL(kccm_members);
EXPORT_SYMBOL_GPL(kccm_is_up);
EXPORT_SYMBOL_GPL(kccm_wait_up);
EXPORT_SYMBOL_GPL(kccm_subscribe);
EXPORT_SYMBOL_GPL(kccm_unsubscribe);

static char *cluster = "kccm";
module_param(cluster, charp, 0444);
MODULE_PARM_DESC(cluster, "Name of the cluster, the same on every node (kccm)");

/* An array, because one string parameter holds at most 1024 characters. */
static char *peers[KCCM_MAX_NODES];
static unsigned int nr_peers;
module_param_array(peers, charp, &nr_peers, 0444);
MODULE_PARM_DESC(peers,
		 "Every node of the cluster, this one too: id=address[:port],... e.g. 0=10.1.0.1,1=10.1.0.2:7700,2=[fd00::3] (required)");

static char *key = "";
module_param(key, charp, 0444);
MODULE_PARM_DESC(key,
		 "What the cluster's keys are called in the keyring, without their numbers, e.g. kccm:storage for the key kccm:storage:1 (none: whoever has the address may join)");

const char *kccm_param_key(void)
{
	return key;
}

const char *kccm_param_cluster(void)
{
	return cluster;
}

const char *kccm_param_peer(unsigned int i)
{
	return i < nr_peers ? peers[i] : NULL;
}
