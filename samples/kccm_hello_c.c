// SPDX-License-Identifier: GPL-2.0
/*
 * The smallest KCCM module in C.
 *
 * Loaded on two nodes, the one that is loaded last calls the other, whose
 * handler sends it a message and replies. kccm_hello_rust.rs is the same in
 * Rust; either greets the other.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/module.h>
#include <linux/string.h>

#include <kccm.h>

/* The function that is called, and the tag of the message that it sends. */
#define HELLO	0x68656c6c

static int peer = -1;
module_param(peer, int, 0444);
MODULE_PARM_DESC(peer, "Node to greet (default: the lowest other one)");

static uint wait_ms = 10000;
module_param(wait_ms, uint, 0444);
MODULE_PARM_DESC(wait_ms, "How long to wait for it to come up, milliseconds (10000)");

/* Another node greets this one. */
static int greeted(struct kccm_call *call, void *ctx)
{
	static const char message[] = "a message in C", reply[] = "hello yourself";
	int ret;

	pr_info("node %u called: %.*s\n", call->source, (int)call->args_len,
		(const char *)call->args);
	ret = kccm_send(call->source, HELLO, message, strlen(message), 1000);
	if (ret)
		return ret;
	call->reply_len = strlen(reply);
	if (call->reply_len <= call->reply_max)
		memcpy(call->reply, reply, call->reply_len);
	return 0;
}

/* Greet a node: call it, and receive the message that it sends. */
static int greet(int node)
{
	static const char args[] = "hello, here is C";
	char buf[64];
	size_t len = sizeof(buf);
	struct kccm_msg_info info;
	int ret;

	ret = kccm_rcall_sync(node, HELLO, args, strlen(args), buf, &len, NULL,
			      wait_ms);
	if (ret == -EOPNOTSUPP) {
		pr_info("node %d cannot be greeted yet: load this module there\n",
			node);
		return 0;
	}
	if (ret)
		return ret;
	pr_info("node %d replied: %.*s\n", node, (int)len, buf);

	ret = kccm_recv(node, HELLO, buf, sizeof(buf), &info, wait_ms);
	if (ret)
		return ret;
	pr_info("node %d sent: %.*s\n", node, (int)info.len, buf);
	return 0;
}

/* The node that is to be greeted. */
static int peer_to_greet(void)
{
	u32 ids[2];

	if (peer >= 0)
		return peer;
	if (kccm_members(ids, ARRAY_SIZE(ids)) < 2)
		return -ENODEV;
	return ids[0] == kccm_node_id() ? ids[1] : ids[0];
}

static int __init hello_init(void)
{
	const struct kccm_handler handler = {
		.func = HELLO,
		/* Long, because it may have to wait for room to send. */
		.class = KCCM_LONG,
		.name = "hello",
		.max_args = 64,
		.fn = greeted,
		.owner = THIS_MODULE,
	};
	int node, ret;

	node = peer_to_greet();
	if (node < 0)
		return node;
	ret = kccm_register_handler(&handler);
	if (ret)
		return ret;
	ret = kccm_wait_up(node, wait_ms);
	if (!ret)
		ret = greet(node);
	if (ret) {
		pr_err("node %d was not greeted: %pe\n", node, ERR_PTR(ret));
		kccm_unregister_handler(HELLO);
	}
	return ret;
}
module_init(hello_init);

static void __exit hello_exit(void)
{
	kccm_unregister_handler(HELLO);
}
module_exit(hello_exit);

MODULE_DESCRIPTION("KCCM sample: greets another node, in C");
MODULE_LICENSE("GPL");
