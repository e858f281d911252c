/* SPDX-License-Identifier: GPL-2.0 */
/*
 * KCCM: kernel-level cluster communication, the interface for other modules.
 *
 * A cluster is a set of nodes, each a kernel with kccm.ko loaded, each with a
 * small number (0..KCCM_MAX_NODES-1).  Every two nodes share a connection.
 * Over it go messages, which a receiver asks for by source and tag, and
 * remote calls ("rcalls"), which run a handler registered on the other node.
 * Both are delivered exactly once and in order between two incarnations of two
 * nodes (an incarnation lasts from loading KCCM to unloading it), also when the
 * connection breaks and is established again.  Messages of kccm_send_bulk()
 * have a connection, and an order, of their own.
 *
 * A node that has not been heard of for dead_ms, or has said that it goes, is
 * down, until it is connected again.  Then what waits for it ends with
 * -EHOSTDOWN, and with -ENETRESET if it has come back as another incarnation;
 * what it has sent before it ended can be received until then.
 *
 * Unless a function says otherwise:
 *  - it may sleep, and is called from process context without spinlocks held;
 *  - it may be called from code that writes back dirty pages or does block
 *    I/O: everything KCCM allocates on the way is allocated as by GFP_NOIO;
 *  - a wait ends early with -EINTR when the waiting task is killed, but not in
 *    kccm_unregister_handler(), kccm_subscribe() and kccm_unsubscribe(), which
 *    wait for code of the caller's own;
 *  - lengths are in bytes, times in milliseconds;
 *  - the return value is 0 or a negative errno.
 */
#ifndef _KCCM_H
#define _KCCM_H

#include <linux/types.h>

struct module;

/* Node ids are 0 .. KCCM_MAX_NODES - 1. */
#define KCCM_MAX_NODES		256
/* As a source: a message from any node. As a node to wait for: all peers. */
#define KCCM_ANY_NODE		(-1)
/* As a tag to receive: any tag. Every 32-bit value is a tag to send with. */
#define KCCM_ANY_TAG		(-1LL)

/* As a time-out: wait for as long as it takes. */
#define KCCM_FOREVER		(-1L)
/* As a time-out: do not wait; what would have to wait returns -EAGAIN. */
#define KCCM_NOWAIT		(0L)

/**
 * struct kccm_msg_info - what is known of a message before and after receipt
 * @source: id of the node that sent it
 * @tag: the tag it was sent with
 * @len: its length in bytes, also where that is more than the buffer holds
 */
struct kccm_msg_info {
	__u32 source;
	__u32 tag;
	__u64 len;
};

/**
 * kccm_send() - send a message to a node
 * @dst: id of the receiving node, which is not this one
 * @tag: the tag a receiver asks for
 * @buf: the message; it may be reused as soon as the call returns
 * @len: its length, 0 to the smaller of the two nodes' max_message
 * @timeout_ms: how long to wait while there is no room for it, there or here:
 *		KCCM_FOREVER, KCCM_NOWAIT, or milliseconds
 *
 * Returns once the message is accepted: it is delivered exactly once, in the
 * order in which messages were sent to @dst, over however many connections,
 * unless one of the two nodes ends before that.  kccm_send_sync() waits for
 * the delivery.  kccm_send_bulk() has an order of its own.
 *
 * Context: Process context; may sleep, but with KCCM_NOWAIT not for room. From
 * a short handler with KCCM_NOWAIT, or where there is room.
 * Return: 0;
 * -EAGAIN: no room at @dst now, or too much here that @dst has yet to
 *	    acknowledge or, where @len is 16 KiB or more, that has yet to be
 *	    sent, and KCCM_NOWAIT was given;
 * -ETIMEDOUT: the same for @timeout_ms;
 * -EMSGSIZE: @len exceeds what the two nodes accept;
 * -EHOSTDOWN: @dst is down, or went down while waiting;
 * -ENETRESET: @dst was restarted while waiting;
 * -EINVAL: no such peer;
 * -EDEADLK: it would have to wait, and the caller is a short handler;
 * -EINTR: killed while waiting; -ENOMEM; -ENODEV: KCCM is not running.
 */
int kccm_send(int dst, __u32 tag, const void *buf, size_t len, long timeout_ms);

/**
 * kccm_send_sync() - send a message to a node and wait for its delivery
 * @dst: id of the receiving node, which is not this one
 * @tag: the tag a receiver asks for
 * @buf: the message; it may be reused as soon as the call returns
 * @len: its length, 0 to the smaller of the two nodes' max_message
 * @timeout_ms: how long to wait, KCCM_FOREVER or milliseconds
 *
 * Returns 0 once @dst has said that the message is in its receive queue or has
 * been handed to a receiver, and with it every message that was sent to the
 * same incarnation of @dst before, but for those of kccm_send_bulk().  A
 * receiver may yet have to ask for it.
 *
 * With any error but -EMSGSIZE, -EINVAL, -EDEADLK, -ENOMEM and -ENODEV it is
 * not known whether the message was delivered; unless @dst has ended, it may
 * still be.
 *
 * Return: 0; as kccm_send(), and
 * -ETIMEDOUT: no confirmation within @timeout_ms;
 * -EHOSTDOWN: @dst went down before it confirmed;
 * -ENETRESET: @dst was restarted before it confirmed;
 * -EINVAL: KCCM_NOWAIT; -EDEADLK: called from a short handler.
 */
int kccm_send_sync(int dst, __u32 tag, const void *buf, size_t len,
		   long timeout_ms);

/**
 * kccm_send_bulk() - send a message that only others of its kind wait behind
 * @dst: id of the receiving node, which is not this one
 * @tag: the tag a receiver asks for
 * @buf: the message; it may be reused as soon as the call returns
 * @len: its length, 0 to the smaller of the two nodes' max_message
 * @timeout_ms: how long to wait for room, and for the connection: KCCM_FOREVER,
 *		KCCM_NOWAIT, or milliseconds
 *
 * As kccm_send(), but over another connection, which two nodes have from the
 * first such message on, with as much room of its own.  Such messages are
 * delivered exactly once, and in order among themselves; what is sent by other
 * functions may overtake them, and may be overtaken.  For long messages beside
 * which calls are to stay fast.  @dst is up as long as the other connection is:
 * while this one cannot be had, who sends over it waits.
 *
 * Context: as kccm_send().
 * Return: as kccm_send(), and
 * -EAGAIN: that connection is being opened, and KCCM_NOWAIT was given;
 * -ETIMEDOUT: the same for @timeout_ms;
 * -EDEADLK: it is being opened, and the caller is a short handler;
 * -ESHUTDOWN: KCCM stopped while waiting for it.
 */
int kccm_send_bulk(int dst, __u32 tag, const void *buf, size_t len,
		   long timeout_ms);

/**
 * kccm_recv() - receive a message
 * @src: id of the node it must come from, or KCCM_ANY_NODE
 * @tag: the tag it must have (0..0xffffffff), or KCCM_ANY_TAG
 * @buf: where it goes
 * @len: how many bytes @buf holds
 * @info: if not NULL, filled in on success and with -EMSGSIZE
 * @timeout_ms: KCCM_FOREVER, KCCM_NOWAIT, or milliseconds
 *
 * Of the messages that match, takes the one that arrived first; when none has
 * arrived, waits for one.  Of several receivers that wait for the same
 * message, the one that began to wait first gets it.  What a node had sent
 * before it ended can be received until its next incarnation is connected.
 *
 * Context: Process context; may sleep. From a short handler with KCCM_NOWAIT,
 * or where a message has arrived.
 * Return: 0;
 * -EMSGSIZE: the message is longer than @len. It stays first in its queue,
 *	      and its length is in @info->len;
 * -EAGAIN: nothing has arrived, and KCCM_NOWAIT was given;
 * -ETIMEDOUT: nothing arrived within @timeout_ms;
 * -EHOSTDOWN: nothing has arrived from @src, and it is down or went down
 *	       while waiting, and what it may have sent for bulk before a
 *	       good-bye has been read (not returned for KCCM_ANY_NODE);
 * -ENETRESET: @src was restarted while waiting (nor this);
 * -EINVAL: no such node or tag;
 * -EDEADLK: it would have to wait, and the caller is a short handler;
 * -EINTR: killed while waiting; -ENOMEM; -ENODEV: KCCM is not running;
 * -ESHUTDOWN: KCCM stopped while waiting.
 */
int kccm_recv(int src, __s64 tag, void *buf, size_t len,
	      struct kccm_msg_info *info, long timeout_ms);

/**
 * kccm_recv_alloc() - receive a message of any length, with its memory
 * @src: as for kccm_recv()
 * @tag: as for kccm_recv()
 * @buf: on success, where the message is; never NULL then
 * @info: if not NULL, filled in on success, with the length
 * @timeout_ms: as for kccm_recv()
 *
 * As kccm_recv(), but the message is not copied: the memory that it has come in
 * is the caller's from now on, who frees it with kvfree().  No message is too
 * long.  The faster way to receive long ones.
 *
 * Context: as kccm_recv().
 * Return: 0, or as kccm_recv() but for -EMSGSIZE.
 */
int kccm_recv_alloc(int src, __s64 tag, void **buf, struct kccm_msg_info *info,
		    long timeout_ms);

/**
 * kccm_probe() - learn about the next message without receiving it
 * @src: as for kccm_recv()
 * @tag: as for kccm_recv()
 * @info: filled in on success
 * @timeout_ms: as for kccm_recv()
 *
 * Another receiver may take the message before the caller does.
 *
 * Context: as kccm_recv().
 * Return: 0, or as kccm_recv() but for -EMSGSIZE.
 */
int kccm_probe(int src, __s64 tag, struct kccm_msg_info *info, long timeout_ms);

/**
 * enum kccm_class - how a handler is run
 * @KCCM_SHORT: by the listener thread itself, as a function call. The fastest
 *	class, and a promise: nothing else of any peer is handled on this node
 *	until the handler returns, but messages for bulk. It must not wait for
 *	anything remote; calls that would return -EDEADLK.
 * @KCCM_LONG: in a kernel thread of its own. It may sleep and call whatever it
 *	likes. At most max_long_handlers run at once, further calls queue.
 *	One idle thread is kept ready; the kernel makes a further one with
 *	GFP_KERNEL, whoever asks. So when memory is short, calls beyond the idle
 *	threads can have to wait for pages to be written back. A handler that
 *	has a part in writing back, for this node or another, should therefore
 *	be short, and leave what takes time to a workqueue of its module's with
 *	WQ_MEM_RECLAIM.
 * @KCCM_SOFTIRQ: where the call comes in, without a thread being woken for it,
 *	and its reply is sent from there: half a round trip's wake-ups. It is
 *	called with softirqs disabled, as a rule in softirq context with the
 *	connection's socket locked, so it must not sleep, takes only spin locks
 *	that are taken with softirqs disabled everywhere, allocates with
 *	GFP_ATOMIC only, and calls no function of KCCM that may sleep: that
 *	would return -EDEADLK. The processor does nothing else meanwhile, so it
 *	should take microseconds. Calls of different nodes may run it at the
 *	same time. Long calls, and those that come in while the listener is at
 *	that node's connection anyway, are run by the listener, with softirqs
 *	disabled as well.
 */
enum kccm_class {
	KCCM_SHORT = 0,
	KCCM_LONG = 1,
	KCCM_SOFTIRQ = 2,
};

/**
 * struct kccm_call - one remote call, as its handler sees it
 * @source: id of the calling node
 * @func: the number that was called
 * @args: the arguments; valid until the handler returns
 * @args_len: their length in bytes
 * @reply: where to put reply bytes; NULL for an asynchronous call. What is there
 *	on entry is nothing that the caller's node may not see, but it need not
 *	be zero
 * @reply_max: room at @reply in bytes, 0 for an asynchronous call
 * @reply_len: set by the handler: how many bytes it has put at @reply (0 on
 *	entry). More than @reply_max makes the caller's call fail with -EMSGSIZE
 *	and tells it this length.
 */
struct kccm_call {
	__u32 source;
	__u32 func;
	const void *args;
	size_t args_len;
	void *reply;
	size_t reply_max;
	size_t reply_len;
};

/**
 * struct kccm_handler - a function that other nodes may call
 * @func: the number by which they call it
 * @class: how it is run
 * @name: for warnings in the log; copied
 * @max_args: longest arguments that it takes, in bytes; a longer call fails at
 *	its caller with -E2BIG and does not reach the handler
 * @fn: the function. Its return value is the call's status: 0 or positive for
 *	success, negative (an errno by convention) for failure
 * @ctx: handed to @fn
 * @owner: THIS_MODULE; held while a call is queued for @fn or runs it
 */
struct kccm_handler {
	__u32 func;
	enum kccm_class class;
	const char *name;
	size_t max_args;
	int (*fn)(struct kccm_call *call, void *ctx);
	void *ctx;
	struct module *owner;
};

/**
 * kccm_register_handler() - make a function callable from other nodes
 * @handler: what to register; it is copied
 *
 * Context: Process context; may sleep for memory. From any handler, too.
 * Return: 0; -EEXIST: @handler->func is taken; -EINVAL: no function, no name,
 * unknown class, or max_args above this node's max_rcall; -ENOMEM;
 * -ENODEV: KCCM is not running.
 */
int kccm_register_handler(const struct kccm_handler *handler);

/**
 * kccm_unregister_handler() - take a function back
 * @func: its number
 *
 * From its return on, the handler does not run and will not be run; calls that
 * had been queued for it have been run. Waits for as long as that takes.
 *
 * Context: Process context; sleeps, and is not killable. Not from a handler,
 * this one or another.
 * Return: 0; -ENOENT: not registered; -EDEADLK: called from a handler;
 * -ENODEV: KCCM is not running.
 */
int kccm_unregister_handler(__u32 func);

/**
 * kccm_rcall() - call a function on another node, without waiting for it
 * @dst: id of the node to run it
 * @func: its number there
 * @args: arguments; may be reused as soon as the call returns
 * @args_len: their length, 0 to the smaller of the two nodes' max_rcall
 * @timeout_ms: how long to wait while @dst has no room for the call
 *
 * The paper's asynchronous rcall. Nothing comes back: if @dst knows no such
 * function, or it fails there, that is counted and logged at @dst only. Calls
 * of short and softirq handlers on one node run in the order in which they were
 * made.
 *
 * Context: as kccm_send().
 * Return: 0: the call is on its way; errors as kccm_send().
 */
int kccm_rcall(int dst, __u32 func, const void *args, size_t args_len,
	       long timeout_ms);

/**
 * kccm_rcall_sync() - call a function on another node and wait for its reply
 * @dst: id of the node to run it
 * @func: its number there
 * @args: arguments
 * @args_len: their length, 0 to the smaller of the two nodes' max_rcall
 * @reply: where reply bytes go, also from softirq context while the call waits;
 *	may be NULL if @reply_len is NULL or 0
 * @reply_len: in: room at @reply, at most the smaller of the two nodes'
 *	max_rcall; out: length of the reply. NULL: no reply bytes are wanted
 * @status: if not NULL, what the handler returned (0 where it did not run)
 * @timeout_ms: time for the whole call: KCCM_FOREVER or milliseconds
 *
 * Context: Process context; sleeps. Not from a short handler.
 * Return: 0: the handler ran and returned 0 or more;
 * -EREMOTEIO: the handler ran and returned a negative value, see @status;
 * -EOPNOTSUPP: @dst has no such handler;
 * -E2BIG: @args_len is more than that handler takes;
 * -EMSGSIZE: the handler ran, but its reply is longer than the room at @reply,
 *	      and @reply_len now tells its length; or @args_len or the room at
 *	      @reply exceeds what the two nodes accept: nothing was called, and
 *	      @reply_len is 0 now;
 * -ETIMEDOUT: no reply within @timeout_ms; the handler may still run;
 * -EHOSTDOWN: @dst is down, or went down before it replied; the handler may
 *	       have run, or may yet;
 * -ENETRESET: @dst was restarted before it replied; the handler may have run;
 * -EDEADLK: called from a short handler;
 * -EINVAL: no such peer, or @timeout_ms is KCCM_NOWAIT;
 * -EINTR: killed while waiting; -ENOMEM; -ENODEV: KCCM is not running;
 * -ESHUTDOWN: KCCM stopped, here or there, before the reply.
 */
int kccm_rcall_sync(int dst, __u32 func, const void *args, size_t args_len,
		    void *reply, size_t *reply_len, int *status,
		    long timeout_ms);

/**
 * kccm_node_id() - this node's id
 *
 * Context: any.
 * Return: the id, or -ENODEV.
 */
int kccm_node_id(void);

/**
 * kccm_incarnation() - what tells this run of this node from every other run
 *
 * Context: any.
 * Return: the incarnation, never 0; 0 when KCCM is not running.
 */
__u64 kccm_incarnation(void);

/**
 * kccm_members() - list the cluster's nodes
 * @ids: where their ids go, ascending, this node's own among them
 * @max: how many @ids holds
 *
 * Context: any. The list does not change while KCCM is loaded.
 * Return: the number of nodes in the cluster, also where it is more than @max;
 * or -ENODEV.
 */
int kccm_members(__u32 *ids, unsigned int max);

/**
 * kccm_is_up() - whether a node is up: connected, or not yet taken for dead
 * @node: its id; the own node is always up
 *
 * Context: any.
 * Return: whether it is; false for an id that is no node's.
 */
bool kccm_is_up(int node);

/**
 * kccm_wait_up() - wait until a node is up
 * @node: its id, or KCCM_ANY_NODE for all peers at once, the paper's fully
 *	connected state
 * @timeout_ms: KCCM_FOREVER, KCCM_NOWAIT, or milliseconds
 *
 * Context: Process context; may sleep. From a short handler with KCCM_NOWAIT,
 * or where the node is up.
 * Return: 0; -EAGAIN or -ETIMEDOUT: it is not up (in time); -EINVAL: no such
 * node; -EDEADLK: it would have to wait, and the caller is a short handler;
 * -EINTR; -ENODEV; -ESHUTDOWN.
 */
int kccm_wait_up(int node, long timeout_ms);

/**
 * enum kccm_event - what happened to a peer
 * @KCCM_NODE_DOWN: it is taken for dead, has said that it goes, or was
 *	restarted; all that waited on it has ended, but for who waits for its
 *	messages while what it sent for bulk before a good-bye is read
 * @KCCM_NODE_UP: it is connected
 */
enum kccm_event {
	KCCM_NODE_DOWN = 0,
	KCCM_NODE_UP = 1,
};

/**
 * struct kccm_subscriber - who wants to hear of peers that come and go
 * @event: called with the peer's id, what happened, and the incarnation of the
 *	peer it happened to. Calls come one at a time, from a thread that does
 *	nothing else: it may sleep and may use KCCM. For one peer, "down" and
 *	"up" alternate; changes that come faster than the subscriber takes
 *	them are merged, never reordered: a peer that was lost and is back is
 *	reported as "down", then "up".
 * @ctx: handed to @event
 */
struct kccm_subscriber {
	void (*event)(void *ctx, __u32 node, enum kccm_event event,
		      __u64 incarnation);
	void *ctx;
};

/**
 * kccm_subscribe() - hear of peers that come and go
 * @subscriber: who; copied
 *
 * Peers that are up already are reported first, as "up".
 *
 * Context: Process context; may sleep, also while another subscriber is being
 * called, and then not killable. Not from a subscriber or a short handler.
 * Return: a positive handle for kccm_unsubscribe(); -EINVAL: no function;
 * -EDEADLK: called from a subscriber or a short handler; -ENOMEM; -ENODEV:
 * KCCM is not running.
 */
int kccm_subscribe(const struct kccm_subscriber *subscriber);

/**
 * kccm_unsubscribe() - hear no more
 * @handle: what kccm_subscribe() returned
 *
 * From its return on, the subscriber is not being called and will not be.
 *
 * Context: Process context; sleeps while any subscriber is being called, and is
 * not killable. Not from a subscriber or a short handler.
 * Return: 0; -ENOENT: no such handle; -EDEADLK: called from a subscriber or a
 * short handler; -ENODEV: KCCM is not running.
 */
int kccm_unsubscribe(int handle);

#endif /* _KCCM_H */
