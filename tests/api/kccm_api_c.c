// SPDX-License-Identifier: GPL-2.0
/*
 * What the exported functions say to arguments that they cannot take. Loading
 * fails if one of them says something else than kccm.h does. The cluster must be
 * connected, and nobody may send to this node with the tag below.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/limits.h>
#include <linux/module.h>

#include <kccm.h>

#define NOBODY	(KCCM_MAX_NODES - 1)
#define TAG	0x61706963
#define FUNC	0x61706963

static unsigned int checks, failed;

#define expect(call, wanted)						\
	do {								\
		long __got = (call), __wanted = (wanted);		\
									\
		checks++;						\
		if (__got != __wanted) {				\
			failed++;					\
			pr_err("line %d: %s is %ld, not %ld\n",		\
			       __LINE__, #call, __got, __wanted);	\
		}							\
	} while (0)

/* Ids that cannot be a node's, or are none's here. */
static const int no_nodes[] = { -2, INT_MIN, KCCM_MAX_NODES, INT_MAX, NOBODY };

static int serve(struct kccm_call *call, void *ctx)
{
	call->reply_len = sizeof(u64);
	if (call->reply_max >= sizeof(u64))
		memcpy(call->reply, ctx, sizeof(u64));
	return 0;
}

static void hear(void *ctx, u32 node, enum kccm_event event, u64 incarnation)
{
}

static void check_messages(int peer)
{
	struct kccm_msg_info info;
	void *message = NULL;
	char buf[4] = "";
	int i;

	for (i = 0; i < ARRAY_SIZE(no_nodes); i++) {
		expect(kccm_send(no_nodes[i], TAG, buf, 1, KCCM_NOWAIT), -EINVAL);
		expect(kccm_send_bulk(no_nodes[i], TAG, buf, 1, KCCM_NOWAIT),
		       -EINVAL);
		expect(kccm_recv(no_nodes[i], TAG, buf, 4, &info, KCCM_NOWAIT),
		       -EINVAL);
		expect(kccm_recv_alloc(no_nodes[i], TAG, &message, &info,
				       KCCM_NOWAIT), -EINVAL);
		expect(kccm_probe(no_nodes[i], TAG, &info, KCCM_NOWAIT), -EINVAL);
	}
	expect(kccm_send(KCCM_ANY_NODE, TAG, buf, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send(kccm_node_id(), TAG, buf, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send(peer, TAG, NULL, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send(peer, TAG, buf, SIZE_MAX, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send_bulk(kccm_node_id(), TAG, buf, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send_bulk(peer, TAG, NULL, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_send_bulk(peer, TAG, buf, SIZE_MAX, KCCM_NOWAIT), -EINVAL);
	/* Nothing can be nowhere. It will stay where it is sent. */
	expect(kccm_send(peer, TAG + 1, NULL, 0, KCCM_FOREVER), 0);
	expect(kccm_send_bulk(peer, TAG + 1, NULL, 0, KCCM_FOREVER), 0);

	expect(kccm_recv(peer, -2, buf, 4, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv(peer, 1LL << 32, buf, 4, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv(peer, S64_MIN, buf, 4, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv_alloc(peer, -2, &message, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv_alloc(peer, TAG, NULL, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv_alloc(peer, TAG, &message, NULL, KCCM_NOWAIT), -EAGAIN);
	expect(kccm_recv_alloc(KCCM_ANY_NODE, TAG, &message, NULL, 10),
	       -ETIMEDOUT);
	expect(message == NULL, 1);
	expect(kccm_probe(peer, -2, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_probe(peer, 1LL << 32, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv(peer, TAG, NULL, 4, &info, KCCM_NOWAIT), -EINVAL);
	expect(kccm_recv(peer, TAG, buf, SIZE_MAX, &info, KCCM_NOWAIT), -EINVAL);
	/* These are all good, but there is nothing. */
	expect(kccm_recv(peer, TAG, NULL, 0, NULL, KCCM_NOWAIT), -EAGAIN);
	expect(kccm_recv(KCCM_ANY_NODE, TAG, buf, 4, NULL, 10), -ETIMEDOUT);
	expect(kccm_recv(peer, 0xffffffff, buf, 4, &info, KCCM_NOWAIT), -EAGAIN);
	expect(kccm_probe(peer, TAG, NULL, KCCM_NOWAIT), -EAGAIN);
	expect(kccm_probe(KCCM_ANY_NODE, TAG, NULL, 10), -ETIMEDOUT);
}

static void check_calls(int peer)
{
	size_t len = 4;
	int status = 77, i;
	char buf[4];

	for (i = 0; i < ARRAY_SIZE(no_nodes); i++) {
		expect(kccm_rcall(no_nodes[i], FUNC, buf, 1, KCCM_NOWAIT), -EINVAL);
		expect(kccm_rcall_sync(no_nodes[i], FUNC, buf, 1, NULL, NULL,
				       NULL, 1000), -EINVAL);
	}
	expect(kccm_rcall(KCCM_ANY_NODE, FUNC, buf, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_rcall(kccm_node_id(), FUNC, buf, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_rcall(peer, FUNC, NULL, 1, KCCM_NOWAIT), -EINVAL);
	expect(kccm_rcall(peer, FUNC, buf, SIZE_MAX, KCCM_NOWAIT), -EINVAL);
	expect(kccm_rcall_sync(peer, FUNC, NULL, 1, NULL, NULL, NULL, 1000),
	       -EINVAL);
	expect(kccm_rcall_sync(peer, FUNC, buf, 1, NULL, NULL, NULL, KCCM_NOWAIT),
	       -EINVAL);
	/* What is to be told is told. */
	expect(kccm_rcall_sync(peer, FUNC, buf, 1, NULL, &len, &status, 1000),
	       -EINVAL);
	expect(len, 0);
	expect(status, 0);
	/* Nothing is wrong with these but that nobody is there to serve them. */
	expect(kccm_rcall_sync(peer, FUNC + 1, NULL, 0, NULL, NULL, NULL, 10000),
	       -EOPNOTSUPP);
	len = 0;
	expect(kccm_rcall_sync(peer, FUNC + 1, NULL, 0, NULL, &len, &status, 10000),
	       -EOPNOTSUPP);
	expect(status, 0);
}

static void check_handlers(void)
{
	static u64 context;
	const struct kccm_handler good = {
		.func = FUNC, .class = KCCM_SHORT, .name = "good", .fn = serve,
		.max_args = 8, .ctx = &context, .owner = THIS_MODULE,
	};
	struct kccm_handler bad;

	expect(kccm_register_handler(NULL), -EINVAL);
	bad = good;
	bad.fn = NULL;
	expect(kccm_register_handler(&bad), -EINVAL);
	bad = good;
	bad.name = NULL;
	expect(kccm_register_handler(&bad), -EINVAL);
	bad = good;
	bad.class = KCCM_SOFTIRQ + 1;
	expect(kccm_register_handler(&bad), -EINVAL);
	bad = good;
	bad.max_args = SIZE_MAX;
	expect(kccm_register_handler(&bad), -EINVAL);

	/* None of these has been registered. */
	expect(kccm_unregister_handler(FUNC), -ENOENT);
	expect(kccm_register_handler(&good), 0);
	expect(kccm_register_handler(&good), -EEXIST);
	expect(kccm_unregister_handler(FUNC), 0);
	expect(kccm_unregister_handler(FUNC), -ENOENT);
}

static void check_cluster(int peer)
{
	struct kccm_subscriber subscriber = { .event = NULL };
	u32 ids[KCCM_MAX_NODES] = { [1] = 0xbad };
	int count, handle, i;

	for (i = 0; i < ARRAY_SIZE(no_nodes); i++) {
		expect(kccm_is_up(no_nodes[i]), false);
		expect(kccm_wait_up(no_nodes[i], KCCM_NOWAIT), -EINVAL);
		expect(kccm_wait_up(no_nodes[i], KCCM_FOREVER), -EINVAL);
	}
	expect(kccm_is_up(KCCM_ANY_NODE), false);
	expect(kccm_is_up(kccm_node_id()), true);
	expect(kccm_is_up(peer), true);
	expect(kccm_wait_up(KCCM_ANY_NODE, KCCM_NOWAIT), 0);
	expect(kccm_incarnation() != 0, true);

	count = kccm_members(NULL, 0);
	expect(count >= 2, true);
	expect(kccm_members(ids, 1), count);
	expect(ids[1], 0xbad);
	expect(kccm_members(ids, ARRAY_SIZE(ids)), count);
	for (i = 1; i < count; i++)
		expect(ids[i - 1] < ids[i], true);

	expect(kccm_subscribe(NULL), -EINVAL);
	expect(kccm_subscribe(&subscriber), -EINVAL);
	subscriber.event = hear;
	handle = kccm_subscribe(&subscriber);
	expect(handle > 0, true);
	expect(kccm_unsubscribe(handle + 1), -ENOENT);
	expect(kccm_unsubscribe(-1), -ENOENT);
	expect(kccm_unsubscribe(0), -ENOENT);
	expect(kccm_unsubscribe(handle), 0);
	expect(kccm_unsubscribe(handle), -ENOENT);
}

static int __init api_init(void)
{
	u32 ids[2];
	int peer;

	if (kccm_members(ids, ARRAY_SIZE(ids)) < 2)
		return -ENODEV;
	peer = ids[0] == kccm_node_id() ? ids[1] : ids[0];
	check_messages(peer);
	check_calls(peer);
	check_handlers();
	check_cluster(peer);
	pr_info("%u checks, %u failed\n", checks, failed);
	return failed ? -EBADE : 0;
}
module_init(api_init);

static void __exit api_exit(void)
{
}
module_exit(api_exit);

MODULE_DESCRIPTION("KCCM test: wrong arguments");
MODULE_AUTHOR("The KCCM maintainers");
MODULE_LICENSE("GPL");
