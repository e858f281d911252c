// SPDX-License-Identifier: GPL-2.0
/*
 * KCCM from the shell, for demonstrations and tests.
 *
 * A command is written to /dev/kccm_demo, and what came of it read from the
 * same open file:
 *
 *	exec 3<>/dev/kccm_demo; echo "ping 1 100 64 sync" >&3; cat <&3
 *
 * send <node> <tag> <text>	send a message
 * send_bulk <node> <tag> <text>	the same over the connection for bulk
 * recv <node|-1> <tag|-1> <ms>	receive one; ms: time-out, -1 for ever
 * probe <node|-1> <tag|-1> <ms>	tell of one
 * ping <node> <rounds> <size> <how>	time round trips of <size> bytes:
 *		sync: a synchronous call;
 *		short, long: an asynchronous call to a handler of that class,
 *		which calls back (the paper's way to a synchronous call)
 * flood <size> [<pause>]	send numbered, checksummed messages of up to <size>
 *		bytes to all peers, with a pause in microseconds between two, and
 *		check those that come in, until "flood 0"
 * hold <0|1>	leave floods that come in where they are queued, or check them
 *		again
 * counts	what was flooded: a line for each peer
 *
 * One command runs at a time in each open file. A killed process ends its
 * command.
 *
 * With the parameter events=1, peers that come and go are told to the log.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/completion.h>
#include <linux/crc32.h>
#include <linux/delay.h>
#include <linux/fs.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/random.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>

#include <kccm.h>

/* Functions that are called on other nodes. */
enum demo_func {
	DEMO_ECHO_SHORT = 0x64656d00,	/* replies with its arguments */
	DEMO_CALL_SHORT,		/* calls DEMO_BACK on its caller */
	DEMO_CALL_LONG,			/* likewise, in a thread */
	DEMO_BACK,			/* wakes who made the call */
};

#define DEMO_FLOOD_TAG	0x666c6f6f
#define DEMO_MAX_SIZE	(64 * 1024)
#define DEMO_MAX_ROUNDS	10000

/* ---- Round trips. */

/* One at a time waits for DEMO_BACK. */
static DEFINE_MUTEX(call_lock);
static DECLARE_COMPLETION(called_back);

static int echo(struct kccm_call *call, void *ctx)
{
	call->reply_len = call->args_len;
	if (call->reply_len <= call->reply_max)
		memcpy(call->reply, call->args, call->args_len);
	return 0;
}

static int call_back(struct kccm_call *call, void *ctx)
{
	/* A short handler must not wait: then the caller's time runs out. */
	return kccm_rcall(call->source, DEMO_BACK, call->args, call->args_len,
			  KCCM_NOWAIT);
}

static int came_back(struct kccm_call *call, void *ctx)
{
	complete(&called_back);
	return 0;
}

static const struct kccm_handler handlers[] = {
	{ .func = DEMO_ECHO_SHORT, .class = KCCM_SHORT, .name = "echo",
	  .fn = echo, .max_args = DEMO_MAX_SIZE, .owner = THIS_MODULE },
	{ .func = DEMO_CALL_SHORT, .class = KCCM_SHORT, .name = "call short",
	  .fn = call_back, .max_args = DEMO_MAX_SIZE, .owner = THIS_MODULE },
	{ .func = DEMO_CALL_LONG, .class = KCCM_LONG, .name = "call long",
	  .fn = call_back, .max_args = DEMO_MAX_SIZE, .owner = THIS_MODULE },
	{ .func = DEMO_BACK, .class = KCCM_SHORT, .name = "back",
	  .fn = came_back, .max_args = DEMO_MAX_SIZE, .owner = THIS_MODULE },
};

static int round_trip(int node, u32 func, void *buf, size_t size)
{
	size_t len = size;
	int ret;

	if (func == DEMO_ECHO_SHORT)
		return kccm_rcall_sync(node, func, buf, size, buf, &len, NULL,
				       5000);
	reinit_completion(&called_back);
	ret = kccm_rcall(node, func, buf, size, 5000);
	if (ret)
		return ret;
	ret = wait_for_completion_killable_timeout(&called_back,
						   msecs_to_jiffies(5000));
	return ret > 0 ? 0 : ret ? -EINTR : -ETIMEDOUT;
}

static int compare_times(const void *a, const void *b)
{
	u64 x = *(const u64 *)a, y = *(const u64 *)b;

	return x < y ? -1 : x > y;
}

static int time_round_trips(int node, u32 func, u64 *times, unsigned int rounds,
			    void *buf, size_t size)
{
	unsigned int i;
	int ret = 0;

	if (mutex_lock_killable(&call_lock))
		return -EINTR;
	for (i = 0; i < rounds && !ret; i++) {
		u64 begin = ktime_get_ns();

		ret = round_trip(node, func, buf, size);
		times[i] = ktime_get_ns() - begin;
	}
	mutex_unlock(&call_lock);
	sort(times, rounds, sizeof(*times), compare_times, NULL);
	return ret;
}

static ssize_t do_ping(const char *args, char *out, size_t room)
{
	unsigned int rounds, size;
	char how[8];
	u64 *times;
	void *buf;
	int node, ret;
	u32 func;

	if (sscanf(args, "%d %u %u %7s", &node, &rounds, &size, how) != 4 ||
	    !rounds || rounds > DEMO_MAX_ROUNDS || size > DEMO_MAX_SIZE)
		return -EINVAL;
	if (!strcmp(how, "sync"))
		func = DEMO_ECHO_SHORT;
	else if (!strcmp(how, "short"))
		func = DEMO_CALL_SHORT;
	else if (!strcmp(how, "long"))
		func = DEMO_CALL_LONG;
	else
		return -EINVAL;
	times = kvcalloc(rounds, sizeof(*times), GFP_KERNEL);
	buf = kvzalloc(size + 1, GFP_KERNEL);
	ret = times && buf ?
	      time_round_trips(node, func, times, rounds, buf, size) : -ENOMEM;
	if (!ret)
		ret = scnprintf(out, room,
				"rounds=%u size=%u min_ns=%llu median_ns=%llu p99_ns=%llu\n",
				rounds, size, times[0], times[rounds / 2],
				times[(rounds - 1) * 99 / 100]);
	kvfree(times);
	kvfree(buf);
	return ret;
}

/* ---- Single messages. */

static ssize_t send_text(const char *args, bool bulk, char *out, size_t room)
{
	int node, at = 0, ret;
	unsigned int tag;
	size_t len;

	if (sscanf(args, "%d %u %n", &node, &tag, &at) != 2 || !at)
		return -EINVAL;
	len = strlen(args + at);
	/* The connection for bulk may have to be opened. */
	ret = bulk ? kccm_send_bulk(node, tag, args + at, len, 5000) :
		     kccm_send(node, tag, args + at, len, KCCM_NOWAIT);
	return ret ?: scnprintf(out, room, "sent %zu bytes\n", len);
}

static ssize_t do_send(const char *args, char *out, size_t room)
{
	return send_text(args, false, out, room);
}

static ssize_t do_send_bulk(const char *args, char *out, size_t room)
{
	return send_text(args, true, out, room);
}

static ssize_t receive(const char *args, bool probe, char *out, size_t room)
{
	struct kccm_msg_info info;
	u64 begin = ktime_get_ns();
	long timeout_ms;
	char buf[256];
	int node, ret;
	s64 tag;

	if (sscanf(args, "%d %lld %ld", &node, &tag, &timeout_ms) != 3)
		return -EINVAL;
	if (probe)
		ret = kccm_probe(node, tag, &info, timeout_ms);
	else
		ret = kccm_recv(node, tag, buf, sizeof(buf), &info, timeout_ms);
	if (ret)
		return ret;
	return scnprintf(out, room,
			 "source=%u tag=%u len=%llu waited_us=%llu text=%.*s\n",
			 info.source, info.tag, info.len,
			 div_u64(ktime_get_ns() - begin, NSEC_PER_USEC),
			 probe ? 0 : (int)info.len, buf);
}

/* ---- The flood. */

/* What a flooded message begins with. The rest of it is its number's bytes. */
struct flood_head {
	u64 run;	/* which flood of the sender this is */
	u64 number;	/* from 0 in each run */
	u32 len;
	u32 crc;	/* of what follows */
};

struct flood_peer {
	struct task_struct *sender;
	int node;
	u64 sent, failed;
	/* Of what came in. */
	u64 run, next;
	u64 received, lost, repeated, corrupt;
};

static DEFINE_MUTEX(flood_lock);
static struct flood_peer flood_peers[KCCM_MAX_NODES];
static struct task_struct *flood_receiver;
static unsigned int flood_size, flood_pause_us;
static u64 flood_run;

static size_t make_message(struct flood_head *head, u64 number, u32 size)
{
	u32 len = size ? get_random_u32_below(size) : 0;

	memset(head + 1, (int)number, len);
	*head = (struct flood_head){
		.run = flood_run,
		.number = number,
		.len = len,
		.crc = crc32_le(~0, (u8 *)(head + 1), len),
	};
	return sizeof(*head) + len;
}

static int flood_send(void *data)
{
	struct flood_peer *peer = data;
	struct flood_head *head;
	u64 number = 0;
	size_t len;

	head = kvmalloc(sizeof(*head) + flood_size, GFP_KERNEL);
	while (head && !kthread_should_stop()) {
		len = make_message(head, number, flood_size);
		if (!kccm_send(peer->node, DEMO_FLOOD_TAG, head, len, 100)) {
			WRITE_ONCE(peer->sent, ++number);
		} else {
			WRITE_ONCE(peer->failed, peer->failed + 1);
			msleep(20);
		}
		if (flood_pause_us)
			fsleep(flood_pause_us);
		cond_resched();
	}
	kvfree(head);
	while (!kthread_should_stop())
		msleep(20);
	return 0;
}

static void flood_check(struct flood_peer *peer, const struct flood_head *head,
			u64 len)
{
	if (len < sizeof(*head) || head->len != len - sizeof(*head) ||
	    head->crc != crc32_le(~0, (u8 *)(head + 1), head->len)) {
		peer->corrupt++;
		return;
	}
	if (head->run != peer->run) {
		peer->run = head->run;
		peer->next = 0;
	}
	peer->received++;
	if (head->number < peer->next) {
		peer->repeated++;
		return;
	}
	peer->lost += head->number - peer->next;
	peer->next = head->number + 1;
}

static int flood_receive(void *data)
{
	size_t room = sizeof(struct flood_head) + DEMO_MAX_SIZE;
	struct kccm_msg_info info;
	struct flood_head *head;

	head = kvmalloc(room, GFP_KERNEL);
	while (head && !kthread_should_stop()) {
		if (!kccm_recv(KCCM_ANY_NODE, DEMO_FLOOD_TAG, head, room, &info,
			       100))
			flood_check(&flood_peers[info.source], head, info.len);
	}
	kvfree(head);
	while (!kthread_should_stop())
		msleep(20);
	return 0;
}

static void flood_stop(void)
{
	int i;

	for (i = 0; i < KCCM_MAX_NODES; i++) {
		if (flood_peers[i].sender)
			kthread_stop(flood_peers[i].sender);
		flood_peers[i].sender = NULL;
	}
}

static int flood_start(unsigned int size, unsigned int pause_us)
{
	struct task_struct *task;
	int i, count;
	u32 *ids;

	ids = kcalloc(KCCM_MAX_NODES, sizeof(*ids), GFP_KERNEL);
	if (!ids)
		return -ENOMEM;
	flood_stop();
	flood_size = size;
	flood_pause_us = pause_us;
	flood_run = get_random_u64();
	count = kccm_members(ids, KCCM_MAX_NODES);
	for (i = 0; i < count; i++) {
		struct flood_peer *peer = &flood_peers[ids[i]];

		if (ids[i] == kccm_node_id())
			continue;
		peer->node = ids[i];
		peer->sent = 0;
		task = kthread_run(flood_send, peer, "kccm_flood/%u", ids[i]);
		if (!IS_ERR(task))
			peer->sender = task;
	}
	kfree(ids);
	return 0;
}

static ssize_t do_flood(const char *args, char *out, size_t room)
{
	unsigned int size, pause_us = 0;
	int ret = 0;

	if (sscanf(args, "%u %u", &size, &pause_us) < 1 || size > DEMO_MAX_SIZE)
		return -EINVAL;
	if (mutex_lock_killable(&flood_lock))
		return -EINTR;
	if (size)
		ret = flood_start(size, pause_us);
	else
		flood_stop();
	mutex_unlock(&flood_lock);
	return ret ?: scnprintf(out, room, "flood %s\n", size ? "on" : "off");
}

static int hold(bool on)
{
	struct task_struct *task;

	if (on) {
		if (flood_receiver)
			kthread_stop(flood_receiver);
		flood_receiver = NULL;
	} else if (!flood_receiver) {
		task = kthread_run(flood_receive, NULL, "kccm_flood");
		if (IS_ERR(task))
			return PTR_ERR(task);
		flood_receiver = task;
	}
	return 0;
}

static ssize_t do_hold(const char *args, char *out, size_t room)
{
	unsigned int on;
	int ret;

	if (kstrtouint(args, 10, &on) || on > 1)
		return -EINVAL;
	if (mutex_lock_killable(&flood_lock))
		return -EINTR;
	ret = hold(on);
	mutex_unlock(&flood_lock);
	return ret ?: scnprintf(out, room, "hold %s\n", on ? "on" : "off");
}

static ssize_t do_counts(const char *args, char *out, size_t room)
{
	size_t len = 0;
	int i;

	for (i = 0; i < KCCM_MAX_NODES; i++) {
		const struct flood_peer *p = &flood_peers[i];

		if (p->sent || p->failed || p->received || p->corrupt)
			len += scnprintf(out + len, room - len,
					 "peer=%d sent=%llu failed=%llu received=%llu next=%llu lost=%llu repeated=%llu corrupt=%llu\n",
					 i, READ_ONCE(p->sent), p->failed,
					 p->received, p->next, p->lost,
					 p->repeated, p->corrupt);
	}
	return len;
}

/* ---- The device. */

static ssize_t do_recv(const char *args, char *out, size_t room)
{
	return receive(args, false, out, room);
}

static ssize_t do_probe(const char *args, char *out, size_t room)
{
	return receive(args, true, out, room);
}

/* A command returns the length of what it has to say, or an error. */
static const struct {
	const char *name;
	ssize_t (*run)(const char *args, char *out, size_t room);
} commands[] = {
	{ "send", do_send },
	{ "send_bulk", do_send_bulk },
	{ "recv", do_recv },
	{ "probe", do_probe },
	{ "ping", do_ping },
	{ "flood", do_flood },
	{ "hold", do_hold },
	{ "counts", do_counts },
};

struct demo_file {
	struct mutex lock;
	size_t len;
	char out[PAGE_SIZE - 64];
};

static ssize_t run_command(struct demo_file *df, char *line)
{
	char *name = strsep(&line, " ");
	ssize_t ret;
	int i;

	for (i = 0; i < ARRAY_SIZE(commands); i++) {
		if (strcmp(name, commands[i].name))
			continue;
		df->len = 0;
		ret = commands[i].run(line ?: "", df->out, sizeof(df->out));
		if (ret > 0)
			df->len = ret;
		return ret;
	}
	return -EINVAL;
}

static ssize_t demo_write(struct file *file, const char __user *buf, size_t len,
			  loff_t *ppos)
{
	struct demo_file *df = file->private_data;
	ssize_t ret;
	char *line;

	line = memdup_user_nul(buf, min_t(size_t, len, 1024));
	if (IS_ERR(line))
		return PTR_ERR(line);
	if (mutex_lock_killable(&df->lock)) {
		kfree(line);
		return -EINTR;
	}
	ret = run_command(df, strim(line));
	/* What came of it is read from the beginning. */
	*ppos = 0;
	mutex_unlock(&df->lock);
	kfree(line);
	return ret < 0 ? ret : len;
}

static ssize_t demo_read(struct file *file, char __user *buf, size_t len,
			 loff_t *ppos)
{
	struct demo_file *df = file->private_data;
	ssize_t ret;

	if (mutex_lock_killable(&df->lock))
		return -EINTR;
	ret = simple_read_from_buffer(buf, len, ppos, df->out, df->len);
	mutex_unlock(&df->lock);
	return ret;
}

static int demo_open(struct inode *inode, struct file *file)
{
	struct demo_file *df = kzalloc_obj(*df);

	if (!df)
		return -ENOMEM;
	mutex_init(&df->lock);
	file->private_data = df;
	return 0;
}

static int demo_release(struct inode *inode, struct file *file)
{
	kfree(file->private_data);
	return 0;
}

static const struct file_operations demo_fops = {
	.owner = THIS_MODULE,
	.open = demo_open,
	.release = demo_release,
	.write = demo_write,
	.read = demo_read,
};

static struct miscdevice demo_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kccm_demo",
	.fops = &demo_fops,
	.mode = 0600,
};

/* ---- Peers that come and go. */

static bool events;
module_param(events, bool, 0444);
MODULE_PARM_DESC(events, "log peers that come and go");

static int subscription;

static void heard(void *ctx, u32 node, enum kccm_event event, u64 incarnation)
{
	pr_info("heard: node %u is %s\n", node,
		event == KCCM_NODE_UP ? "up" : "down");
}

static int subscribe(void)
{
	const struct kccm_subscriber subscriber = { .event = heard };
	int ret = events ? kccm_subscribe(&subscriber) : 0;

	if (ret < 0)
		return ret;
	subscription = ret;
	return 0;
}

static void unsubscribe(void)
{
	if (subscription)
		kccm_unsubscribe(subscription);
}

/* ---- The module. */

static void unregister_handlers(int count)
{
	while (count--)
		kccm_unregister_handler(handlers[count].func);
}

static int __init demo_init(void)
{
	int ret = 0, i;

	for (i = 0; i < ARRAY_SIZE(handlers); i++) {
		ret = kccm_register_handler(&handlers[i]);
		if (ret)
			goto err_handlers;
	}
	ret = hold(false);
	if (ret)
		goto err_handlers;
	ret = subscribe();
	if (ret)
		goto err_receiver;
	ret = misc_register(&demo_device);
	if (ret)
		goto err_subscriber;
	return 0;

err_subscriber:
	unsubscribe();
err_receiver:
	hold(true);
err_handlers:
	unregister_handlers(i);
	return ret;
}
module_init(demo_init);

static void __exit demo_exit(void)
{
	misc_deregister(&demo_device);
	unsubscribe();
	flood_stop();
	hold(true);
	unregister_handlers(ARRAY_SIZE(handlers));
}
module_exit(demo_exit);

MODULE_DESCRIPTION("KCCM from the shell");
MODULE_AUTHOR("The KCCM maintainers");
MODULE_LICENSE("GPL");
