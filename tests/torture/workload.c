// SPDX-License-Identifier: GPL-2.0
/*
 * What the threads and handlers of kccm_torture.ko do.
 *
 * Calls are made only to nodes that have said that their handlers are
 * registered, in a message with TAG_READY: a call without a handler is lost
 * rightly.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/atomic.h>
#include <linux/crc32.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/prandom.h>
#include <linux/preempt.h>
#include <linux/slab.h>

#include <kccm.h>

#include "torture.h"

#define BODY_MAGIC	0x79646f42646e6553ULL
#define REPLY_MAGIC	0x796c706552646e61ULL

#define FUNCTIONS	0x746f7200
/* What a reply may have after its head. */
#define REPLY_MORE	512
/* How long a thread waits where there is nothing to do. */
#define IDLE_MS		20

/* What a message, and the arguments of a call, begin with. */
struct body {
	u64 magic;
	u64 incarnation;
	u64 number;
	u32 source;
	u32 dest;
	u32 tag;
	u32 length;	/* of all of it */
};

struct reply {
	u64 magic;
	u64 incarnation;	/* whose handler ran */
	u64 caller;		/* incarnation and */
	u64 number;		/* number of the call */
	u32 length;		/* of the arguments, and */
	u32 crc;		/* their checksum */
	u32 more;		/* bytes that follow, and */
	u32 more_crc;		/* their checksum */
};

enum job { JOB_MESSAGES, JOB_CALLS, JOB_SYNC_CALLS };

struct sender {
	struct task_struct *task;
	struct rnd_state random;
	int node;
	enum job job;
	/* This one says that the handlers are registered. */
	bool greets;
	void *buf;
	struct reply *reply;
};

struct receiver {
	struct task_struct *task;
	struct rnd_state random;
	int source;
	u8 tag;
	void *buf;
};

struct node_state {
	/* Incarnations, or 0: who is up, and who answers calls. */
	atomic64_t up, answers;
	/* It has to be told that we do. */
	bool greet;
};

/* Tags as they are sent: also those that look like something else. */
static const u32 tags[TAG_MESSAGES] = {
	[TAG_READY] = 0x72656164,
	[TAG_ANY] = 0,
	[TAG_PROBED] = 0xffffffff,
	[TAG_EACH] = 0x80000000,
	[TAG_BULK] = 0x62756c6b,
};

/* What can be called, each as often as another. */
static const struct {
	u8 tag;
	enum kccm_class class;
	const char *name;
} handlers[] = {
	{ FUNC_SHORT, KCCM_SHORT, "torture short" },
	{ FUNC_BRIEF, KCCM_SHORT, "torture brief" },
	{ FUNC_LONG, KCCM_LONG, "torture long" },
	{ FUNC_SLOW, KCCM_LONG, "torture slow" },
	{ FUNC_SOFTIRQ, KCCM_SOFTIRQ, "torture softirq" },
};

static const enum job jobs[] = {
	JOB_MESSAGES, JOB_MESSAGES, JOB_CALLS, JOB_SYNC_CALLS,
};

static struct node_state nodes[KCCM_MAX_NODES];
static u32 *members;
static int member_count, own_node, subscription;
static u64 own_incarnation;
static struct sender *senders;
static struct receiver *receivers;
static int sender_count, receiver_count;
static atomic64_t numbers;
static bool running;

/* ---- What is sent. */

static u32 below(struct rnd_state *random, u32 bound)
{
	return bound ? prandom_u32_state(random) % bound : 0;
}

static u32 some_length(struct rnd_state *random)
{
	u32 most = max_size;

	switch (below(random, 32)) {
	case 0:
		break;
	case 1 ... 2:
		most = min(most, 16384u);
		break;
	case 3 ... 7:
		most = min(most, 4096u);
		break;
	default:
		most = min(most, 256u);
	}
	return sizeof(struct body) +
	       below(random, most - sizeof(struct body) + 1);
}

static u32 checksum(const void *data, size_t len)
{
	return crc32_le(~0, data, len);
}

/* Makes what is to be sent, and writes down that it is about to be. */
static struct history_record begin(u8 kind, int node, u8 tag, struct body *body,
				   u32 length)
{
	struct history_record begun = {
		.kind = kind,
		.node = node,
		.tag = tag,
		.number = atomic64_inc_return(&numbers),
		.length = length,
	};
	struct rnd_state more;

	*body = (struct body){
		.magic = BODY_MAGIC,
		.incarnation = own_incarnation,
		.number = begun.number,
		.source = own_node,
		.dest = node,
		.tag = tag,
		.length = length,
	};
	prandom_seed_state(&more, own_incarnation ^ begun.number);
	prandom_bytes_state(&more, body + 1, length - sizeof(*body));
	begun.crc = checksum(body, length);
	record(&begun);
	return begun;
}

static void end(const struct history_record *begun, int result)
{
	record(&(struct history_record){
		.kind = begun->kind + 1,
		.number = begun->number,
		.result = result,
	});
}

static int send(int node, u8 tag, struct body *body, u32 length, long timeout)
{
	struct history_record begun;
	int ret;

	begun = begin(HISTORY_SEND, node, tag, body, length);
	ret = tag == TAG_BULK ?
	      kccm_send_bulk(node, tags[tag], body, length, timeout) :
	      kccm_send(node, tags[tag], body, length, timeout);
	end(&begun, ret);
	return ret;
}

static int send_sync(int node, u8 tag, struct body *body, u32 length,
		     long timeout)
{
	struct history_record begun;
	int ret;

	begun = begin(HISTORY_CONFIRM, node, tag, body, length);
	ret = kccm_send_sync(node, tags[tag], body, length, timeout);
	end(&begun, ret);
	return ret;
}

static int call(int node, u8 tag, struct body *body, u32 length, long timeout)
{
	struct history_record begun;
	int ret;

	begun = begin(HISTORY_CALL, node, tag, body, length);
	ret = kccm_rcall(node, FUNCTIONS + tag, body, length, timeout);
	end(&begun, ret);
	return ret;
}

/* What the handler is to return. */
static int status_of(u64 number)
{
	return number % 8 == 7 ? -EPROTO : number % 128;
}

static u8 check_reply(const struct reply *reply, size_t len, u64 number)
{
	if (len < sizeof(*reply) || reply->magic != REPLY_MAGIC ||
	    reply->more != len - sizeof(*reply) ||
	    reply->more_crc != checksum(reply + 1, reply->more))
		return HISTORY_MANGLED;
	if (reply->caller != own_incarnation || reply->number != number)
		return HISTORY_ASTRAY;
	return 0;
}

static int call_sync(int node, u8 tag, struct body *body, u32 length,
		     struct reply *reply, long timeout)
{
	size_t reply_len = sizeof(*reply) + REPLY_MORE;
	struct history_record begun, ended;
	int ret, status = 0;

	begun = begin(HISTORY_SYNC, node, tag, body, length);
	ret = kccm_rcall_sync(node, FUNCTIONS + tag, body, length, reply,
			      &reply_len, &status, timeout);
	ended = (struct history_record){
		.kind = HISTORY_REPLIED,
		.number = begun.number,
		.result = ret,
	};
	if (!ret) {
		ended.flags = check_reply(reply, reply_len, begun.number);
		ended.incarnation = reply->incarnation;
		ended.length = reply->length;
		ended.crc = reply->crc;
	}
	if ((!ret || ret == -EREMOTEIO) && status != status_of(begun.number))
		ended.flags |= HISTORY_STATUS;
	record(&ended);
	return ret;
}

/* ---- Threads that send. */

static long some_timeout(struct rnd_state *random)
{
	static const long timeouts[] = { KCCM_NOWAIT, 20, 500, 5000 };

	return timeouts[below(random, ARRAY_SIZE(timeouts))];
}

static bool answers(int node)
{
	u64 up = atomic64_read(&nodes[node].up);

	return up && atomic64_read(&nodes[node].answers) == up;
}

static int send_something(struct sender *s)
{
	struct node_state *to = &nodes[s->node];
	long timeout;
	u32 length;
	u8 tag;
	int ret;

	if (s->greets && READ_ONCE(to->greet)) {
		WRITE_ONCE(to->greet, false);
		ret = send(s->node, TAG_READY, s->buf, sizeof(struct body), 500);
		if (ret && atomic64_read(&to->up))
			WRITE_ONCE(to->greet, true);
		return ret;
	}
	tag = TAG_ANY + below(&s->random, TAG_MESSAGES - TAG_ANY);
	length = some_length(&s->random);
	timeout = some_timeout(&s->random);
	if (tag != TAG_BULK && !below(&s->random, 16))
		return send_sync(s->node, tag, s->buf, length,
				 timeout == KCCM_NOWAIT ? KCCM_FOREVER : timeout);
	return send(s->node, tag, s->buf, length, timeout);
}

static int call_something(struct sender *s)
{
	u8 tag = handlers[below(&s->random, ARRAY_SIZE(handlers))].tag;
	u32 length = some_length(&s->random);
	long timeout = some_timeout(&s->random);

	if (!answers(s->node))
		return -EAGAIN;
	if (s->job == JOB_CALLS)
		return call(s->node, tag, s->buf, length, timeout);
	if (timeout == KCCM_NOWAIT)
		timeout = KCCM_FOREVER;
	return call_sync(s->node, tag, s->buf, length, s->reply, timeout);
}

/* Now and then much at once, otherwise with pauses. */
static void rest(struct sender *s, unsigned int *burst)
{
	if (*burst) {
		--*burst;
		cond_resched();
		return;
	}
	if (!below(&s->random, 64))
		*burst = below(&s->random, 64);
	fsleep(below(&s->random, 2 * pause_us + 1));
}

static int sender_thread(void *data)
{
	struct sender *s = data;
	unsigned int burst = 0;
	int ret;

	while (!kthread_should_stop()) {
		if (!READ_ONCE(sending) || recorder_crowded()) {
			msleep(IDLE_MS);
			continue;
		}
		if (s->job == JOB_MESSAGES)
			ret = send_something(s);
		else
			ret = call_something(s);
		if (ret && ret != -EREMOTEIO) {
			burst = 0;
			msleep(IDLE_MS);
		}
		rest(s, &burst);
	}
	return 0;
}

/* ---- Threads that receive, and handlers. */

/* Writes down what has come, and what @flags say of it; true if it is what it says. */
static bool arrived(u8 kind, u32 source, u8 tag, const struct body *body,
		    size_t length, u8 flags, u64 since)
{
	struct history_record came = {
		.kind = kind,
		.node = source,
		.tag = tag,
		.flags = flags,
		.length = length,
		.crc = checksum(body, length),
	};

	if (length < sizeof(*body) || body->magic != BODY_MAGIC ||
	    body->length != length) {
		came.flags |= HISTORY_MANGLED;
	} else {
		came.number = body->number;
		came.incarnation = body->incarnation;
		if (body->source != source || body->dest != own_node ||
		    body->tag != tag)
			came.flags |= HISTORY_ASTRAY;
	}
	record_since(&came, since);
	return !(came.flags & (HISTORY_MANGLED | HISTORY_ASTRAY));
}

static int receive(struct receiver *r)
{
	struct kccm_msg_info info;
	void *message = r->buf, *allocated = NULL;
	int source = r->source, ret;
	long timeout = 100;
	u64 since;

	if (r->tag == TAG_PROBED) {
		ret = kccm_probe(source, tags[r->tag], &info, timeout);
		if (ret)
			return ret;
		source = info.source;
		timeout = KCCM_NOWAIT;
	}
	since = recorded();
	/* Now this way, now that. */
	if (below(&r->random, 2)) {
		ret = kccm_recv(source, tags[r->tag], r->buf, max_size, &info,
				timeout);
	} else {
		ret = kccm_recv_alloc(source, tags[r->tag], &allocated, &info,
				      timeout);
		message = allocated;
	}
	if (ret)
		return ret;
	if (arrived(HISTORY_RECV, info.source, r->tag, message, info.len, 0,
		    since) && r->tag == TAG_READY)
		atomic64_set(&nodes[info.source].answers,
			     ((struct body *)message)->incarnation);
	kvfree(allocated);
	return 0;
}

static int receiver_thread(void *data)
{
	struct receiver *r = data;

	while (!kthread_should_stop()) {
		/* A READY comes through also when messages do not. */
		if (!READ_ONCE(receiving) && r->tag != TAG_READY)
			msleep(IDLE_MS);
		else if (receive(r) == -EHOSTDOWN)
			msleep(IDLE_MS);
		/* Now and then something else is more urgent. */
		else if (r->tag != TAG_READY && !below(&r->random, 256))
			msleep(below(&r->random, 1000));
		cond_resched();
	}
	return 0;
}

static int make_reply(struct kccm_call *call, const struct body *args)
{
	struct reply *reply = call->reply;
	size_t length = sizeof(*reply) + args->number % REPLY_MORE;
	struct rnd_state more;

	/* An asynchronous call: nobody hears of it. */
	if (call->reply_max < length)
		return 0;
	prandom_seed_state(&more, args->number);
	prandom_bytes_state(&more, reply + 1, length - sizeof(*reply));
	*reply = (struct reply){
		.magic = REPLY_MAGIC,
		.incarnation = own_incarnation,
		.caller = args->incarnation,
		.number = args->number,
		.length = call->args_len,
		.crc = checksum(args, call->args_len),
		.more = length - sizeof(*reply),
		.more_crc = checksum(reply + 1, length - sizeof(*reply)),
	};
	call->reply_len = length;
	return status_of(args->number);
}

/* Where nothing is received, calls pile up, too. */
static void be_slow(unsigned int ms)
{
	int i;

	msleep(ms);
	for (i = 0; i < 100 && !READ_ONCE(receiving); i++)
		msleep(IDLE_MS);
}

/* What there is to be said of the context that a handler is run in. */
static u8 context_of(u8 tag)
{
	/* Handlers of the other classes may sleep: softirqs are enabled there. */
	u8 flags = !!in_softirq() == (tag == FUNC_SOFTIRQ) ? 0 : HISTORY_CONTEXT;

	return in_serving_softirq() ? flags | HISTORY_SOFTIRQ : flags;
}

/* For FUNC_SOFTIRQ it must not sleep, nor send. */
static int handle(struct kccm_call *this, void *ctx)
{
	const struct body *args = this->args;
	u8 tag = this->func - FUNCTIONS;
	struct body back;
	u64 since = recorded();

	if (!arrived(HISTORY_RUN, this->source, tag, args, this->args_len,
		     context_of(tag), since))
		return -EBADMSG;
	if (tag == FUNC_LONG)
		fsleep(args->number % 4096);
	if (tag == FUNC_SLOW)
		be_slow(args->number % 300);
	/* Handlers send and call, too. */
	if (READ_ONCE(sending) && args->number % 4 == 0) {
		if (tag == FUNC_BRIEF)
			call(this->source, FUNC_SHORT, &back, sizeof(back),
			     KCCM_NOWAIT);
		if (tag == FUNC_SLOW)
			send(this->source, TAG_EACH, &back, sizeof(back), 100);
	}
	return make_reply(this, args);
}

static void heard(void *ctx, u32 node, enum kccm_event event, u64 incarnation)
{
	record(&(struct history_record){
		.kind = event == KCCM_NODE_UP ? HISTORY_UP : HISTORY_DOWN,
		.node = node,
		.incarnation = incarnation,
	});
	atomic64_set(&nodes[node].up, event == KCCM_NODE_UP ? incarnation : 0);
	WRITE_ONCE(nodes[node].greet, event == KCCM_NODE_UP);
}

static const struct kccm_subscriber subscriber = {
	.event = heard,
};

void workload_final(void)
{
	int i;

	for (i = 0; i < member_count; i++) {
		int node = members[i];
		u64 up = atomic64_read(&nodes[node].up);

		if (node == own_node)
			continue;
		record(&(struct history_record){
			.kind = HISTORY_FINAL,
			.node = node,
			.incarnation = kccm_is_up(node) ? up : 0,
		});
	}
}

/* ---- Starting and stopping. */

static int run_thread(struct task_struct **task, int (*run)(void *),
		      void *data, const char *what, int node)
{
	struct task_struct *made;

	made = kthread_run(run, data, "kccm_%s/%d", what, node);
	if (IS_ERR(made))
		return PTR_ERR(made);
	*task = made;
	return 0;
}

static int start_receiver(int source, u8 tag)
{
	struct receiver *r = &receivers[receiver_count];

	r->source = source;
	r->tag = tag;
	prandom_seed_state(&r->random, own_incarnation + source + tag);
	r->buf = kvmalloc(max_size, GFP_KERNEL);
	if (!r->buf)
		return -ENOMEM;
	receiver_count++;
	return run_thread(&r->task, receiver_thread, r, "receive", tag);
}

static int start_sender(int node, int which, u32 seed)
{
	struct sender *s = &senders[sender_count];

	s->node = node;
	s->job = jobs[which];
	s->greets = which == 0;
	prandom_seed_state(&s->random, ((u64)seed << 32) + (own_node << 16) +
				       (node << 8) + which);
	s->buf = kvmalloc(max_size, GFP_KERNEL);
	s->reply = kmalloc(sizeof(*s->reply) + REPLY_MORE, GFP_KERNEL);
	sender_count++;
	if (!s->buf || !s->reply)
		return -ENOMEM;
	return run_thread(&s->task, sender_thread, s, "send", node);
}

static int start_receivers(void)
{
	int ret, i;

	ret = start_receiver(KCCM_ANY_NODE, TAG_READY);
	if (!ret)
		ret = start_receiver(KCCM_ANY_NODE, TAG_ANY);
	if (!ret)
		ret = start_receiver(KCCM_ANY_NODE, TAG_PROBED);
	if (!ret)
		ret = start_receiver(KCCM_ANY_NODE, TAG_BULK);
	for (i = 0; i < member_count && !ret; i++)
		if (members[i] != own_node)
			ret = start_receiver(members[i], TAG_EACH);
	return ret;
}

static int start_senders(u32 seed)
{
	int ret = 0, i, which;

	for (i = 0; i < member_count; i++)
		for (which = 0; which < ARRAY_SIZE(jobs) && !ret; which++)
			if (members[i] != own_node)
				ret = start_sender(members[i], which, seed);
	return ret;
}

static int register_handlers(void)
{
	struct kccm_handler handler = {
		.fn = handle, .max_args = max_size, .owner = THIS_MODULE,
	};
	int ret, i;

	for (i = 0; i < ARRAY_SIZE(handlers); i++) {
		handler.func = FUNCTIONS + handlers[i].tag;
		handler.class = handlers[i].class;
		handler.name = handlers[i].name;
		ret = kccm_register_handler(&handler);
		if (ret)
			return ret;
	}
	record(&(struct history_record){ .kind = HISTORY_READY });
	return 0;
}

static int make_room(void)
{
	own_node = kccm_node_id();
	own_incarnation = kccm_incarnation();
	members = kcalloc(KCCM_MAX_NODES, sizeof(*members), GFP_KERNEL);
	if (!members)
		return -ENOMEM;
	member_count = kccm_members(members, KCCM_MAX_NODES);
	senders = kcalloc(member_count * ARRAY_SIZE(jobs), sizeof(*senders),
			  GFP_KERNEL);
	receivers = kcalloc(member_count + TAG_MESSAGES, sizeof(*receivers),
			    GFP_KERNEL);
	return senders && receivers ? 0 : -ENOMEM;
}

int workload_start(u32 seed)
{
	int ret;

	if (max_size < sizeof(struct body) * 2)
		return -EINVAL;
	running = true;
	ret = make_room();
	if (!ret)
		ret = register_handlers();
	if (!ret)
		ret = start_receivers();
	if (!ret) {
		subscription = kccm_subscribe(&subscriber);
		ret = min(subscription, 0);
	}
	if (!ret)
		ret = start_senders(seed);
	if (ret)
		workload_stop();
	return ret;
}

void workload_stop(void)
{
	int i;

	if (!running)
		return;
	running = false;
	for (i = 0; i < sender_count; i++) {
		if (senders[i].task)
			kthread_stop(senders[i].task);
		kvfree(senders[i].buf);
		kfree(senders[i].reply);
	}
	record(&(struct history_record){ .kind = HISTORY_STOP });
	if (subscription > 0)
		kccm_unsubscribe(subscription);
	/* Those that are not registered say so, and are fine. */
	for (i = 0; i < ARRAY_SIZE(handlers); i++)
		kccm_unregister_handler(FUNCTIONS + handlers[i].tag);
	for (i = 0; i < receiver_count; i++) {
		if (receivers[i].task)
			kthread_stop(receivers[i].task);
		kvfree(receivers[i].buf);
	}
	kfree(receivers);
	kfree(senders);
	kfree(members);
}
