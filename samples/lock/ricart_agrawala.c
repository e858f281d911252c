// SPDX-License-Identifier: GPL-2.0
/*
 * Ricart and Agrawala's mutual exclusion: "An Optimal Algorithm for Mutual
 * Exclusion in Computer Networks", Communications of the ACM 24(1), 1981.
 *
 * A node that wants in sends a REQUEST with a time stamp to all others, and is
 * in when each has sent a REPLY. Who gets a REQUEST replies at once, except
 * when it is in itself, or wants in with an earlier stamp: then it replies when
 * it leaves. So nodes enter in the order of their stamps, with 2 * (n - 1)
 * messages each time. The paper's variables are here:
 *
 *   Our_Sequence_Number            dlock.request, with the node's id below it
 *   Highest_Sequence_Number        dlock.highest
 *   Requesting_Critical_Section    dlock.request != 0
 *   Outstanding_Reply_Count        peers that are in and have not replied: as
 *                                  nodes come and go, a number would not do
 *   Reply_Deferred[j]              dlock.peers[j].wants
 *
 * That nodes come, go and fail, the paper leaves to a section of its own: a
 * node that is gone counts as one that has replied; one that comes learns who
 * takes part, is put on everybody's list, and takes over the highest sequence
 * number before it may ask. Here that is done with HELLOs:
 *
 *  - Every node has a view: who takes part, as far as it knows. It tells those
 *    in its view whenever that changes, in a HELLO, along with the rest of
 *    what a newcomer must know. When KCCM says that a peer is up, it gets a
 *    HELLO that is to be answered. Whoever sends a HELLO is taken into the
 *    view; who is down, or says GOODBYE, is taken out.
 *  - A node asks and enters only while it agrees with those in its view: each
 *    has it in its own view, and nobody else who is not in this one. So a node
 *    that some still see, and some no longer or not yet, makes the latter wait
 *    until that is settled, instead of being overlooked. While they wait they
 *    let others in.
 *  - A node that has just begun may not enter before one that could enter
 *    already has told it what there is to know. Where nobody can, all nodes of
 *    the cluster must be there: that is how it begins.
 *  - At least a quorum of the cluster's nodes must take part, by default a
 *    majority, so that of a cluster in two parts only one goes on.
 *
 * As long as only nodes that have failed are down, there is never more than
 * one node in: of two that are settled each has the other in its view, and its
 * reply. What no lock can rule out is that a node is in when the network takes
 * it away from all the others. These must go on some time, and it does not
 * know. Therefore whoever enters gets its stamp, greater than all before: what
 * the lock protects can tell by it who is too late, as the counter does.
 *
 * Two nodes that a third can reach but that cannot reach each other both wait
 * until they can, or until the third one has lost one of them too; the third
 * goes on.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/bitops.h>
#include <linux/cleanup.h>
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/unaligned.h>

#include "lock.h"

/* What may have to be sent to a peer, in the order in which it is sent. */
enum owed {
	OWE_HELLO,
	OWE_REQUEST,
	OWE_REPLY,
	NR_OWED,
};

/**
 * struct hello - what a node tells others when something about it has changed
 * @incarnation: which run of the node says so
 * @made: when, in nanoseconds of its own clock
 * @highest: the highest sequence number that it has heard of
 * @view: who takes part, as it sees it
 * @settled: it may enter
 * @answer: a HELLO is wanted in return
 * @counter: its copy of the counter
 */
struct hello {
	__le64 incarnation;
	__le64 made;
	__le64 highest;
	struct view view;
	u8 settled;
	u8 answer;
	u8 counter[];
} __packed;

struct dlock dlock = {
	.mutex = __MUTEX_INITIALIZER(dlock.mutex),
	.granted = __WAIT_QUEUE_HEAD_INITIALIZER(dlock.granted),
	.claims = LIST_HEAD_INIT(dlock.claims),
	.all = LIST_HEAD_INIT(dlock.all),
};

static int subscription;

/* ---- Views ---- */

static void view_add(struct view *view, u32 id)
{
	view->bits[id / 8] |= BIT(id % 8);
}

static void view_del(struct view *view, u32 id)
{
	view->bits[id / 8] &= ~BIT(id % 8);
}

static bool view_covers(const struct view *view, const struct view *other)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(view->bits); i++) {
		if (other->bits[i] & ~view->bits[i])
			return false;
	}
	return true;
}

/* A peer sees this node, and sees nobody whom this node does not see. */
static bool agrees(const struct peer *peer)
{
	return view_has(&peer->view, dlock.me) &&
	       view_covers(&dlock.view, &peer->view);
}

/* ---- Sending ---- */

static void make_hello(struct hello *hello, bool answer)
{
	hello->incarnation = cpu_to_le64(kccm_incarnation());
	hello->made = cpu_to_le64(ktime_get_ns());
	hello->highest = cpu_to_le64(dlock.highest);
	hello->view = dlock.view;
	hello->settled = dlock.settled;
	hello->answer = answer;
	counter_get((struct counter *)hello->counter);
}

static int send_owed(struct peer *peer, enum owed what)
{
	__le64 stamp;
	int ret;

	switch (what) {
	case OWE_HELLO:
		if (dlock.leaving)
			return 0;
		make_hello(dlock.hello, false);
		return kccm_rcall(peer->id, LOCK_HELLO, dlock.hello, dlock.hello_size,
				  KCCM_NOWAIT);
	case OWE_REQUEST:
		if (!dlock.request || dlock.held)
			return 0;
		stamp = cpu_to_le64(dlock.request);
		return kccm_rcall(peer->id, LOCK_REQUEST, &stamp, sizeof(stamp),
				  KCCM_NOWAIT);
	case OWE_REPLY:
		stamp = cpu_to_le64(peer->wants);
		ret = kccm_rcall(peer->id, LOCK_REPLY, &stamp, sizeof(stamp),
				 KCCM_NOWAIT);
		if (!ret)
			peer->wants = 0;
		return ret;
	default:
		return 0;
	}
}

/* Send a peer what it is owed; what cannot be sent now is sent later. */
static void pay(struct peer *peer)
{
	enum owed what;
	int ret;

	for (what = 0; what < NR_OWED; what++) {
		if (!(peer->owed & BIT(what)))
			continue;
		ret = send_owed(peer, what);
		if (ret == -EAGAIN || ret == -EDEADLK || ret == -ENOMEM) {
			schedule_delayed_work(&dlock.retry, 1);
			return;
		}
		if (ret) {
			/* It is down. If it comes back, all begins anew. */
			peer->owed = 0;
			return;
		}
		peer->owed &= ~BIT(what);
	}
}

static void owe(struct peer *peer, enum owed what)
{
	peer->owed |= BIT(what);
	pay(peer);
}

static void pay_all(struct work_struct *work)
{
	struct peer *peer;

	guard(mutex)(&dlock.mutex);
	list_for_each_entry(peer, &dlock.all, list)
		pay(peer);
}

/* Tell all who take part what this node sees. */
static void announce(void)
{
	struct peer *peer;

	list_for_each_entry(peer, &dlock.all, list) {
		if (peer->in)
			owe(peer, OWE_HELLO);
	}
}

/* ---- The algorithm ---- */

/* This node may begin to enter: it has heard what there is to know. */
static bool may_settle(void)
{
	bool all = true, settled = false;
	struct peer *peer;

	list_for_each_entry(peer, &dlock.all, list) {
		all &= peer->in;
		settled |= peer->in && peer->settled;
	}
	return all || settled;
}

/* Those who take part agree that it is they, and are enough. */
static bool may_request(void)
{
	struct peer *peer;
	u32 nodes = 1;

	list_for_each_entry(peer, &dlock.all, list) {
		if (peer->in && !agrees(peer))
			return false;
		nodes += peer->in;
	}
	return nodes >= dlock.quorum;
}

static bool may_enter(void)
{
	struct peer *peer;

	list_for_each_entry(peer, &dlock.all, list) {
		if (peer->in && !peer->replied)
			return false;
	}
	return true;
}

static void send_request(void)
{
	struct peer *peer;

	dlock.request = make_stamp(++dlock.highest, dlock.me);
	dlock.requests++;
	list_for_each_entry(peer, &dlock.all, list) {
		peer->replied = false;
		if (peer->in)
			owe(peer, OWE_REQUEST);
	}
}

static void enter(void)
{
	struct claim *claim = list_first_entry(&dlock.claims, struct claim, list);

	dlock.held = true;
	dlock.entries++;
	claim->stamp = dlock.request;
	WRITE_ONCE(claim->granted, true);
	wake_up_all(&dlock.granted);
}

static void leave(void)
{
	struct peer *peer;

	dlock.request = 0;
	dlock.held = false;
	list_for_each_entry(peer, &dlock.all, list) {
		if (peer->wants)
			owe(peer, OWE_REPLY);
	}
}

/* Something has changed: go on as far as that goes. */
static void advance(void)
{
	bool ready = may_request();

	if (ready && !dlock.settled && may_settle()) {
		dlock.settled = true;
		announce();
	}
	if (!ready || !dlock.settled) {
		/* It may be long until this node can enter: let others in. */
		if (dlock.request && !dlock.held)
			leave();
		return;
	}
	if (!dlock.request && !list_empty(&dlock.claims))
		send_request();
	if (dlock.request && !dlock.held && may_enter())
		enter();
}

static void heard_of(u64 seq)
{
	dlock.highest = max(dlock.highest, seq);
}

static int get_stamp(const struct kccm_call *call, u64 *stamp)
{
	if (call->args_len != sizeof(__le64))
		return -EINVAL;
	*stamp = get_unaligned_le64(call->args);
	return 0;
}

static int handle_request(struct kccm_call *call, void *ctx)
{
	struct peer *peer = &dlock.peers[call->source];
	u64 stamp;

	if (get_stamp(call, &stamp))
		return -EINVAL;
	guard(mutex)(&dlock.mutex);
	heard_of(stamp_seq(stamp));
	peer->wants = stamp;
	if (dlock.request && dlock.request < stamp)
		dlock.deferred++;
	else
		owe(peer, OWE_REPLY);
	return 0;
}

static int handle_reply(struct kccm_call *call, void *ctx)
{
	u64 stamp;

	if (get_stamp(call, &stamp))
		return -EINVAL;
	guard(mutex)(&dlock.mutex);
	/* One to a request that has been withdrawn means nothing. */
	if (stamp == dlock.request) {
		dlock.peers[call->source].replied = true;
		advance();
	}
	return 0;
}

/**
 * dlock_claim() - want the lock
 * @claim: whom it is for; granted when it is its turn, unless it is already
 */
void dlock_claim(struct claim *claim)
{
	guard(mutex)(&dlock.mutex);
	if (!list_empty(&claim->list))
		return;
	list_add_tail(&claim->list, &dlock.claims);
	advance();
}

/**
 * dlock_release() - want the lock no more
 * @claim: who has it, or waits for it, or neither
 */
void dlock_release(struct claim *claim)
{
	bool first;

	guard(mutex)(&dlock.mutex);
	if (list_empty(&claim->list))
		return;
	first = list_is_first(&claim->list, &dlock.claims);
	list_del_init(&claim->list);
	claim->granted = false;
	/* The request is that of the first claim; the next makes its own. */
	if (first && dlock.request)
		leave();
	advance();
}

/* ---- Who takes part ---- */

static void put_in(struct peer *peer)
{
	bool is_new = !peer->in;

	/* It may have forgotten what it said, and missed what was said to it. */
	peer->in = true;
	peer->replied = false;
	peer->written = false;
	peer->owed |= BIT(OWE_HELLO) | BIT(OWE_REQUEST);
	view_add(&dlock.view, peer->id);
	if (is_new)
		announce();
	else
		pay(peer);
}

static void take_out(struct peer *peer)
{
	if (!peer->in)
		return;
	peer->in = false;
	peer->wants = 0;
	peer->owed = 0;
	view_del(&dlock.view, peer->id);
	announce();
}

static int handle_hello(struct kccm_call *call, void *ctx)
{
	struct peer *peer = &dlock.peers[call->source];
	const struct hello *hello = call->args;
	u64 incarnation, made;

	if (call->args_len != dlock.hello_size)
		return -EINVAL;
	incarnation = le64_to_cpu(hello->incarnation);
	made = le64_to_cpu(hello->made);

	guard(mutex)(&dlock.mutex);
	if (dlock.leaving)
		return 0;
	if (peer->incarnation != incarnation) {
		take_out(peer);
		peer->incarnation = incarnation;
		peer->made = 0;
	}
	/* greet() may have been overtaken by what was announced meanwhile. */
	if (made >= peer->made) {
		peer->made = made;
		peer->view = hello->view;
		peer->settled = hello->settled;
	}
	heard_of(le64_to_cpu(hello->highest));
	counter_merge((const struct counter *)hello->counter);
	if (!peer->in || hello->answer)
		put_in(peer);
	advance();
	return 0;
}

static int handle_goodbye(struct kccm_call *call, void *ctx)
{
	guard(mutex)(&dlock.mutex);
	take_out(&dlock.peers[call->source]);
	advance();
	return 0;
}

/* Say hello to a peer that is up, and have it answered. */
static int greet(u32 id)
{
	struct hello *hello __free(kfree) = kmalloc(dlock.hello_size, GFP_KERNEL);
	int ret;

	if (!hello)
		return -ENOMEM;
	scoped_guard(mutex, &dlock.mutex)
		make_hello(hello, true);
	ret = kccm_rcall_sync(id, LOCK_HELLO, hello, dlock.hello_size, NULL, NULL,
			      NULL, KCCM_FOREVER);
	if (ret == -EREMOTEIO || ret == -E2BIG)
		pr_err("node %u has been loaded with another list of nodes\n", id);
	return ret;
}

static void node_event(void *ctx, u32 id, enum kccm_event event, u64 incarnation)
{
	struct peer *peer = &dlock.peers[id];
	int ret;

	if (event == KCCM_NODE_UP) {
		while ((ret = greet(id)) == -ENOMEM)
			msleep(20);
		if (ret != -EOPNOTSUPP)
			return;
		/* It has no such module, so what took part was another run. */
	}

	guard(mutex)(&dlock.mutex);
	/*
	 * A peer that is back may have said hello before it is reported here
	 * that its earlier run is down.
	 */
	if (event == KCCM_NODE_UP ? peer->incarnation != incarnation :
	    peer->incarnation == incarnation || !kccm_is_up(id))
		take_out(peer);
	advance();
}

/* ---- The rest ---- */

/**
 * dlock_show() - print how it stands
 * @seq: where to
 */
void dlock_show(struct seq_file *seq)
{
	struct peer *peer;
	const char *state;
	u32 nodes = 1;

	list_for_each_entry(peer, &dlock.all, list)
		nodes += peer->in;
	if (!dlock.settled)
		state = "joining";
	else if (dlock.held)
		state = "held";
	else if (!list_empty(&dlock.claims))
		state = "waiting";
	else
		state = "idle";
	seq_printf(seq, "state=%s stamp=%llu.%u nodes=%u in=%u quorum=%u ready=%d\n",
		   state, stamp_seq(dlock.request), stamp_node(dlock.request),
		   dlock.nr_nodes, nodes, dlock.quorum,
		   dlock.settled && may_request());
	seq_printf(seq, "requests=%llu entries=%llu deferred=%llu\n",
		   dlock.requests, dlock.entries, dlock.deferred);
	list_for_each_entry(peer, &dlock.all, list) {
		seq_printf(seq, "peer=%u in=%d settled=%d agrees=%d replied=%d waits=%d\n",
			   peer->id, peer->in, peer->settled, peer->in && agrees(peer),
			   peer->in && dlock.request && peer->replied,
			   !!peer->wants);
	}
}

/**
 * register_handlers() - register all of an array, or none
 * @handlers: the array
 * @count: how many it has; they are registered in this order
 *
 * Return: as kccm_register_handler().
 */
int register_handlers(const struct kccm_handler *handlers, unsigned int count)
{
	unsigned int i;
	int ret;

	for (i = 0; i < count; i++) {
		ret = kccm_register_handler(&handlers[i]);
		if (ret) {
			unregister_handlers(handlers, i);
			return ret;
		}
	}
	return 0;
}

/**
 * unregister_handlers() - take them back, in the opposite order
 * @handlers: the array
 * @count: how many it has
 */
void unregister_handlers(const struct kccm_handler *handlers, unsigned int count)
{
	while (count--)
		kccm_unregister_handler(handlers[count].func);
}

static struct kccm_handler handlers[] = {
	{ .func = LOCK_GOODBYE, .class = KCCM_SHORT, .name = "lock goodbye",
	  .fn = handle_goodbye, .owner = THIS_MODULE },
	{ .func = LOCK_REQUEST, .class = KCCM_SHORT, .name = "lock request",
	  .fn = handle_request, .max_args = sizeof(__le64), .owner = THIS_MODULE },
	{ .func = LOCK_REPLY, .class = KCCM_SHORT, .name = "lock reply",
	  .fn = handle_reply, .max_args = sizeof(__le64), .owner = THIS_MODULE },
	/* Last, for it makes others call these. See dlock_start(). */
	{ .func = LOCK_HELLO, .class = KCCM_SHORT, .name = "lock hello",
	  .fn = handle_hello, .owner = THIS_MODULE },
};

/**
 * dlock_init() - learn who the cluster is
 * @quorum: how many nodes must take part, 0 for a majority
 *
 * Return: 0; -EINVAL: a cluster has not so many nodes; -ENOMEM; -ENODEV: KCCM
 * is not running.
 */
int dlock_init(unsigned int quorum)
{
	u32 *ids __free(kfree) = kcalloc(KCCM_MAX_NODES, sizeof(*ids), GFP_KERNEL);
	int i, count;

	if (!ids)
		return -ENOMEM;
	count = kccm_members(ids, KCCM_MAX_NODES);
	if (count < 0)
		return count;
	if (quorum > count) {
		pr_err("quorum=%u is more than the %d nodes of the cluster\n",
		       quorum, count);
		return -EINVAL;
	}
	dlock.me = kccm_node_id();
	for (i = 0; i < KCCM_MAX_NODES; i++) {
		dlock.peers[i].id = i;
		INIT_LIST_HEAD(&dlock.peers[i].list);
	}
	for (i = 0; i < count; i++) {
		if (ids[i] != dlock.me)
			list_add_tail(&dlock.peers[ids[i]].list, &dlock.all);
	}
	dlock.nr_ids = ids[count - 1] + 1;
	dlock.nr_nodes = count;
	dlock.quorum = quorum ?: count / 2 + 1;
	view_add(&dlock.view, dlock.me);
	dlock.hello_size = sizeof(struct hello) + counter_size();
	dlock.hello = kmalloc(dlock.hello_size, GFP_KERNEL);
	if (!dlock.hello)
		return -ENOMEM;
	INIT_DELAYED_WORK(&dlock.retry, pay_all);
	return 0;
}

/**
 * dlock_start() - take part
 *
 * Return: 0; or as kccm_register_handler() and kccm_subscribe().
 */
int dlock_start(void)
{
	const struct kccm_subscriber subscriber = {
		.event = node_event,
	};
	int ret;

	handlers[ARRAY_SIZE(handlers) - 1].max_args = dlock.hello_size;
	ret = register_handlers(handlers, ARRAY_SIZE(handlers));
	if (ret)
		return ret;
	scoped_guard(mutex, &dlock.mutex)
		advance();
	ret = kccm_subscribe(&subscriber);
	if (ret < 0) {
		unregister_handlers(handlers, ARRAY_SIZE(handlers));
		cancel_delayed_work_sync(&dlock.retry);
		return ret;
	}
	subscription = ret;
	return 0;
}

/**
 * dlock_stop() - take part no more; nobody has claims by now
 */
void dlock_stop(void)
{
	struct peer *peer;

	scoped_guard(mutex, &dlock.mutex)
		dlock.leaving = true;
	kccm_unsubscribe(subscription);
	list_for_each_entry(peer, &dlock.all, list) {
		/* Who is down, or has no such module, need not be told. */
		while (kccm_rcall_sync(peer->id, LOCK_GOODBYE, NULL, 0, NULL, NULL,
				       NULL, KCCM_FOREVER) == -ENOMEM)
			msleep(20);
	}
	unregister_handlers(handlers, ARRAY_SIZE(handlers));
	cancel_delayed_work_sync(&dlock.retry);
}

/**
 * dlock_exit() - undo dlock_init()
 */
void dlock_exit(void)
{
	kfree(dlock.hello);
}
