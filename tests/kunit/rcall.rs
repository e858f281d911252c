// SPDX-License-Identifier: GPL-2.0

//! Remote calls.

use super::harness::*;
use crate::config::NodeId;
use crate::events::Event;
use crate::node::Node;
use crate::rcall::handlers::{
    Call,
    Class, //
};
use crate::rcall::Failure;
use crate::sys::owner::Owner;
use crate::sys::thread;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};

const SHORT: u32 = 1;
const LONG: u32 = 2;

/// A count that handlers and their test share.
fn count() -> Result<Arc<Atomic<usize>>> {
    Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
}

/// Registers a long handler that is held back.
fn register_held(node: &Node, latch: &Latch) -> Result {
    register_latched(node, LONG, Class::Long, latch)
}

/// Makes a call and returns how it failed.
fn failure(from: &Node, func: u32, args: &[u8], reply: &mut [u8]) -> Result<Failure> {
    let result = from.rcall_sync(1, func, args, reply, SOON);
    result.err().ok_or(EINVAL)
}

/// Runs something in a short handler of node 0, which node 1 calls, and returns what comes of it.
fn in_short_handler(
    cluster: &Cluster,
    body: impl Fn(&Node) -> Result + Send + Sync + 'static,
) -> Result {
    let (node, caller) = cluster.pair()?;
    let theirs = node.clone();
    register(&node, SHORT, Class::Short, move |_| {
        check_in_handler(body(&theirs))
    })?;
    let result = call(&caller, 0, SHORT).here();
    node.unregister(SHORT)?;
    check_eq!(result?, 0);
    Ok(())
}

fn check_in_handler(result: Result) -> i32 {
    result.map_or(1, |()| 0)
}

/// Returns status and reply as its arguments say: status, length, and what to fill the reply with.
fn obey(call: &mut Call<'_>) -> i32 {
    let word = |i: usize| {
        let bytes = call.args.get(4 * i..).and_then(|b| b.first_chunk());
        i32::from_le_bytes(bytes.copied().unwrap_or_default())
    };
    let (status, len, fill) = (word(0), word(1) as usize, word(2) as u8);
    if let Some(reply) = &mut call.reply {
        reply.iter_mut().take(len).for_each(|byte| *byte = fill);
    }
    call.reply_len = len;
    status
}

/// Arguments for [`obey`].
fn order(status: i32, len: i32, fill: u8) -> [u8; 12] {
    let mut args = [0; 12];
    let words = [status, len, fill.into()];
    for (bytes, word) in args.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    args
}

#[kunit_tests(kccm_rcall)]
mod tests {
    use super::*;

    // ---- Where handlers run.

    /// P5, P8: a short handler runs in the listener (figure 5), a long one in a thread of its own
    /// (figure 4).
    #[test]
    fn short_in_the_listener_long_in_a_thread() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        for (func, class) in [(SHORT, Class::Short), (LONG, Class::Long)] {
            let theirs = node.clone();
            register(&node, func, class, move |_| {
                let listener = theirs.queues.is_listener();
                let member = theirs.pool.is_member();
                i32::from(listener) + 2 * i32::from(member)
            })?;
        }
        let statuses = [SHORT, LONG].map(|func| call(&caller, 1, func));
        node.unregister(SHORT)?;
        node.unregister(LONG)?;
        check_eq!(statuses, [Ok(1), Ok(2)]);
        Ok(())
    }

    /// P8: while long handlers run, the listener goes on: messages, short calls, more long calls;
    /// each long call has a thread to itself.
    #[test]
    fn long_handlers_hold_up_nothing() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register_echo(&node)?;
        let latch = Latch::new()?;
        let threads = Arc::pin_init(new_mutex!(KVec::new(), "threads"), GFP_KERNEL)?;
        let (barrier, theirs): (_, Arc<Mutex<KVec<usize>>>) = (latch.barrier(), threads.clone());
        register(&node, LONG, Class::Long, move |_| {
            let noted = theirs.lock().push(thread::current_id(), GFP_KERNEL);
            barrier.pass();
            i32::from(noted.is_err())
        })?;
        for running in 1..=4 {
            caller.rcall(1, LONG, &[], SOON).here()?;
            latch.wait_held(running)?;
            send(&caller, &node, 1, b"meanwhile")?;
            expect(&node, &caller, 1, b"meanwhile")?;
            echo(&caller, &node)?;
        }
        let theirs = caller.clone();
        let one_more = spawn(move || call(&theirs, 1, LONG))?;
        latch.wait_held(5)?;
        latch.open();
        check_eq!(one_more.join()?, Ok(0));
        let threads = threads.lock();
        let different = (0..5).all(|i| !threads[..i].contains(&threads[i]));
        check!(threads.len() == 5 && different);
        Ok(())
    }

    /// P8: a short handler holds up whatever comes after it: that is its contract.
    #[test]
    fn short_handler_holds_up_messages() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_latched(&node, SHORT, Class::Short, &latch)?;
        caller.rcall(1, SHORT, &[], SOON).here()?;
        latch.wait_held(1)?;
        send(&caller, &node, 1, b"later")?;
        steadily(50, || node.endpoint.waiting() == (0, 0))?;
        latch.open();
        expect(&node, &caller, 1, b"later")
    }

    /// P8: so many long handlers at once, and a queue behind them.
    #[test]
    fn long_handlers_are_bounded() -> Result {
        const MAX: u32 = 3;
        const CALLS: u32 = 8;
        let mut plan = Plan::of(2);
        plan.limits.max_long_handlers = MAX;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_held(&node, &latch)?;
        let ran = count()?;
        let theirs = ran.clone();
        register(&node, LONG + 1, Class::Long, move |_| {
            theirs.fetch_add(1, Relaxed);
            0
        })?;
        for _ in 0..MAX {
            caller.rcall(1, LONG, &[], SOON).here()?;
        }
        latch.wait_held(MAX)?;
        for _ in 0..CALLS {
            caller.rcall(1, LONG + 1, &[], SOON).here()?;
        }
        eventually(|| node.pool.counts() == (CALLS, MAX))?;
        steadily(30, || ran.load(Relaxed) == 0)?;
        latch.open();
        eventually(|| ran.load(Relaxed) == CALLS as usize)?;
        eventually(|| node.pool.counts() == (0, MAX))
    }

    /// P8: those that queue for a thread are run in the order in which they were made.
    #[test]
    fn long_calls_queue_in_order() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.max_long_handlers = 1;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let order = Arc::pin_init(new_mutex!(KVec::new(), "order"), GFP_KERNEL)?;
        let theirs: Arc<Mutex<KVec<u8>>> = order.clone();
        register(&node, LONG, Class::Long, move |call| {
            let noted = theirs.lock().push(call.args[0], GFP_KERNEL);
            i32::from(noted.is_err())
        })?;
        for number in 0..20 {
            caller.rcall(1, LONG, &[number], SOON).here()?;
        }
        eventually(|| order.lock().len() == 20)?;
        check!(order.lock().iter().copied().eq(0..20));
        Ok(())
    }

    /// A short handler that takes too long is counted.
    #[test]
    fn slow_short_handler() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.short_warn_us = 20_000 * SLOWNESS as u32;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        register(&node, SHORT, Class::Short, |call| {
            if !call.args.is_empty() {
                pause(25 * SLOWNESS);
            }
            0
        })?;
        let run = |args: &[u8]| caller.rcall_sync(1, SHORT, args, &mut [], SOON).is_ok();
        check!(run(b"slow"));
        eventually(|| node.handlers.slow.get() == 1)?;
        check!(run(b"slow"));
        eventually(|| node.handlers.slow.get() == 2)?;
        // One of several is quick, however slow the machine.
        check!((0..5).all(|_| run(b"")));
        check!(node.handlers.slow.get() < 7);
        Ok(())
    }

    // ---- Asynchronous calls.

    /// P9: the caller does not wait for the handler to run.
    #[test]
    fn asynchronous_call_returns_before_it_runs() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let (latch, ran) = (Latch::new()?, count()?);
        let (barrier, theirs) = (latch.barrier(), ran.clone());
        register(&node, LONG, Class::Long, move |call| {
            barrier.pass();
            // There is nowhere to reply to.
            if call.reply.is_none() && call.source == 0 && call.args == b"go" {
                theirs.fetch_add(1, Relaxed);
            }
            0
        })?;
        caller.rcall(1, LONG, b"go", SOON).here()?;
        latch.wait_held(1)?;
        check_eq!(ran.load(Relaxed), 0);
        latch.open();
        eventually(|| ran.load(Relaxed) == 1)
    }

    /// P9: calls of short handlers run in the order in which they were made.
    #[test]
    fn short_calls_run_in_order() -> Result {
        const CALLS: usize = often(1000) as usize;
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let (next, wrong) = (count()?, count()?);
        let (theirs, theirs_wrong) = (next.clone(), wrong.clone());
        register(&node, SHORT, Class::Short, move |call| {
            let expected = theirs.fetch_add(1, Relaxed);
            if call.args != expected.to_le_bytes() {
                theirs_wrong.fetch_add(1, Relaxed);
            }
            0
        })?;
        for number in 0..CALLS {
            caller.rcall(1, SHORT, &number.to_le_bytes(), SOON).here()?;
        }
        eventually(|| next.load(Relaxed) == CALLS)?;
        check_eq!(wrong.load(Relaxed), 0);
        Ok(())
    }

    /// Nobody is told of an asynchronous call that fails; it is counted where it does.
    #[test]
    fn asynchronous_failures_are_counted() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register(&node, SHORT, Class::Short, |call| -(call.args.len() as i32))?;
        let failed = || node.peer(0).map(|peer| peer.stats.failed_rcalls.get());
        for (func, args, failures) in [(SHORT, 0, 0), (SHORT, 5, 1), (SHORT + 7, 0, 2)] {
            caller.rcall(1, func, &[0; 8][..args], SOON).here()?;
            // What comes after it has been handled when this returns.
            check_eq!(call(&caller, 1, SHORT), Ok(0));
            check_eq!(failed(), Some(failures));
        }
        Ok(())
    }

    // ---- Synchronous calls.

    /// P9: the remote function sends its return value back, and its reply.
    #[test]
    fn status_and_reply() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        for (func, class) in [(SHORT, Class::Short), (LONG, Class::Long)] {
            register(&node, func, class, obey)?;
            for (status, len) in [(0, 0), (0, 1), (7, 8), (i32::MAX, 10_000)] {
                let mut reply = pattern(10_001, 1)?;
                let args = order(status, len, 0x5a);
                let done = caller.rcall_sync(1, func, &args, &mut reply, SOON);
                let done = done.map_err(|failure| failure.error).here()?;
                check_eq!((done.status, done.len), (status, len as usize));
                check!(reply[..done.len].iter().all(|&byte| byte == 0x5a));
                check!(reply[done.len..] == pattern(10_001, 1)?[done.len..]);
            }
        }
        Ok(())
    }

    /// What a handler makes of a call is told apart from what becomes of it on the way.
    #[test]
    fn handler_that_fails() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register(&node, SHORT, Class::Short, obey)?;
        // -EHOSTDOWN is the handler's status, and not the connection's.
        let status = EHOSTDOWN.to_errno();
        let mut reply = [0; 16];
        let failed = failure(&caller, SHORT, &order(status, 3, 9), &mut reply)?;
        check_eq!(failed.error, EREMOTEIO);
        check_eq!(failed.status, status);
        check_eq!(failed.needed, Some(3));
        check_eq!(reply[..4], [9, 9, 9, 0]);
        Ok(())
    }

    #[test]
    fn reply_that_is_too_long() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register(&node, SHORT, Class::Short, obey)?;
        let mut reply = [0; 16];
        let failed = failure(&caller, SHORT, &order(3, 17, 9), &mut reply)?;
        check_eq!(failed.error, EMSGSIZE);
        check_eq!(failed.needed, Some(17));
        check_eq!(failed.status, 3);
        check_eq!(reply, [0; 16]);
        let failed = failure(&caller, SHORT, &order(0, 1, 9), &mut [])?;
        check_eq!((failed.error, failed.needed), (EMSGSIZE, Some(1)));
        Ok(())
    }

    #[test]
    fn no_such_handler() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        check_eq!(call(&caller, 1, SHORT), Err(EOPNOTSUPP));
        register_echo(&node)?;
        echo(&caller, &node)
    }

    #[test]
    fn arguments_that_are_too_long() -> Result {
        let mut plan = Plan::of(2);
        plan.adjust = |id, limits| {
            if id == 0 {
                limits.max_rcall = 1000;
            }
        };
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let ran = count()?;
        let theirs = ran.clone();
        let mut handler = handler(SHORT, Class::Short, Owner::NONE, move |_| {
            theirs.fetch_add(1, Relaxed);
            0
        })?;
        handler.max_args = 100;
        node.register(handler)?;
        let bytes = [0; 1001];
        let error = |args: usize, reply: usize| {
            let mut room = [0; 1001];
            let result = caller.rcall_sync(1, SHORT, &bytes[..args], &mut room[..reply], SOON);
            result.err().map(|failure| failure.error)
        };
        check_eq!(error(100, 1000), None);
        check_eq!(error(101, 0), Some(E2BIG));
        check_eq!(error(1000, 0), Some(E2BIG));
        // More than the smaller of the two nodes' bounds is not even sent.
        check_eq!(error(1001, 0), Some(EMSGSIZE));
        check_eq!(error(0, 1001), Some(EMSGSIZE));
        let result = caller.rcall(1, SHORT, &bytes, SOON);
        check_eq!(result, Err(EMSGSIZE));
        check_eq!(ran.load(Relaxed), 1);
        check_eq!(epoch(&caller, 1), 1);
        Ok(())
    }

    #[test]
    fn longest_arguments_and_reply() -> Result {
        const LEN: usize = 1 << 20;
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register_echo(&node)?;
        let args = pattern(LEN, 1)?;
        let mut reply = pattern(LEN, 2)?;
        let done = caller.rcall_sync(1, ECHO, &args, &mut reply, SOON);
        check_eq!(done.map(|done| done.len).ok(), Some(LEN));
        check!(reply[..] == args[..]);
        Ok(())
    }

    /// A reply that comes too late is dropped, and nothing else suffers.
    #[test]
    fn call_that_takes_too_long() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_held(&node, &latch)?;
        register_echo(&node)?;
        let call = || caller.rcall_sync(1, LONG, &[], &mut [], Timeout::After(40));
        let result = waits(40, call)?;
        check_eq!(result.err().map(|failure| failure.error), Some(ETIMEDOUT));
        check_eq!(caller.calls.waiting(), 0);
        latch.open();
        // It replies now.
        eventually(|| node.peer(0).is_some_and(|p| p.snapshot().queued == 0))?;
        for _ in 0..10 {
            echo(&caller, &node)?;
        }
        check_eq!(epoch(&caller, 1), 1);
        let result = caller.rcall_sync(1, LONG, &[], &mut [], Timeout::NoWait);
        check_eq!(result.err().map(|failure| failure.error), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn killed_caller() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_held(&node, &latch)?;
        let theirs = caller.clone();
        let job = spawn(move || call(&theirs, 1, LONG))?;
        latch.wait_held(1)?;
        job.wait_asleep()?;
        job.kill();
        check_eq!(job.join()?, Err(EINTR));
        check_eq!(caller.calls.waiting(), 0);
        Ok(())
    }

    /// P11: the node that is called goes while the call runs, or waits to.
    #[test]
    fn node_goes_during_a_call() -> Result {
        let mut plan = Plan::of(3);
        plan.limits.max_long_handlers = 1;
        let mut cluster = Cluster::new(plan)?;
        let (caller, node, other) = cluster.trio()?;
        let (latch, others) = (Latch::new()?, Latch::new()?);
        register_held(&node, &latch)?;
        register_held(&other, &others)?;
        let [one, two, three] = [(); 3].map(|()| caller.clone());
        let running = spawn(move || call(&one, 1, LONG))?;
        latch.wait_held(1)?;
        let queued = spawn(move || call(&two, 1, LONG))?;
        eventually(|| node.pool.counts().0 == 1)?;
        let elsewhere = spawn(move || call(&three, 2, LONG))?;
        others.wait_held(1)?;
        let going = cluster.take(1);
        drop(node);
        let stopper = spawn(move || drop(going))?;
        check_eq!(running.join()?, Err(EHOSTDOWN));
        // It was told, as far as the connection still served.
        check!(matches!(queued.join()?, Err(ESHUTDOWN | EHOSTDOWN)));
        check!(!elsewhere.is_done());
        check_eq!(call(&caller, 1, LONG), Err(EHOSTDOWN));
        check_eq!(caller.rcall(1, LONG, &[], SOON), Err(EHOSTDOWN));
        latch.open();
        stopper.join()?;
        others.open();
        check_eq!(elsewhere.join()?, Ok(0));
        Ok(())
    }

    /// P8: what would block is refused to a short handler, rather than hang the listener.
    #[test]
    fn short_handler_must_not_wait() -> Result {
        let mut cluster = Cluster::new(Plan::small(3))?;
        // Node 2 is not there.
        cluster.stop(2);
        let (node, caller) = cluster.pair()?;
        register(&caller, LONG, Class::Long, |_| 0)?;
        let message = &[0; SMALL_MESSAGE];
        for _ in 0..SMALL_ROOM {
            node.send(1, 1, message, Timeout::NoWait).here()?;
        }
        in_short_handler(&cluster, |node| {
            check_eq!(call(node, 1, LONG), Err(EDEADLK));
            let result = receive(node, None, None, &mut [], SOON);
            check_eq!(result, Err(EDEADLK));
            check_eq!(node.probe(Some(1), None, SOON), Err(EDEADLK));
            check_eq!(node.wait_up(Some(2), SOON), Err(EDEADLK));
            // Both would wait for subscribers, and those may wait for the listener.
            let nobody = KBox::new(|_: NodeId, _: Event, _: u64| {}, GFP_KERNEL)?;
            check_eq!(node.subscribe(nobody), Err(EDEADLK));
            check_eq!(node.unsubscribe(1), Err(EDEADLK));
            let result = node.send(1, 1, &[0; SMALL_MESSAGE], SOON);
            check_eq!(result, Err(EDEADLK));
            // What would not wait is served, or said to be impossible.
            let result = receive(node, None, None, &mut [], Timeout::NoWait);
            check_eq!(result, Err(EAGAIN));
            let result = node.send(1, 1, &[0; SMALL_MESSAGE], Timeout::NoWait);
            check_eq!(result, Err(EAGAIN));
            check_eq!(node.wait_up(Some(1), SOON), Ok(()));
            check_eq!(node.rcall(1, LONG, &[], SOON), Ok(()));
            check_eq!(node.send(1, 2, &[], SOON), Ok(()));
            Ok(())
        })
    }

    /// A short handler may take a message that is there.
    #[test]
    fn short_handler_takes_a_message() -> Result {
        let cluster = Cluster::of(2)?;
        let (node, caller) = cluster.pair()?;
        send(&caller, &node, 1, b"here")?;
        waiting(&node, 1, 0)?;
        in_short_handler(&cluster, |node| {
            let mut buf = [0; 4];
            let info = receive(node, Some(1), Some(1), &mut buf, SOON)?;
            check!(info.len == 4 && &buf == b"here");
            Ok(())
        })
    }

    /// P8, P9: a long handler may do whatever it likes, such as call back.
    #[test]
    fn long_handler_calls_back() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register(&caller, SHORT, Class::Short, |_| 5)?;
        let theirs = node.clone();
        register(&node, LONG, Class::Long, move |_| {
            call(&theirs, 0, SHORT).unwrap_or(-1) + 1
        })?;
        let result = call(&caller, 1, LONG);
        node.unregister(LONG)?;
        check_eq!(result, Ok(6));
        Ok(())
    }

    /// P9: many callers at once, each of which gets its own replies.
    #[test]
    fn many_callers() -> Result {
        const CALLERS: u64 = 8;
        const CALLS: u64 = often(500);
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        register_echo(&node)?;
        register(&node, LONG, Class::Long, |call| i32::from(call.args[0]))?;
        let mut jobs = KVec::new();
        for number in 0..CALLERS {
            let (caller, node) = (caller.clone(), node.clone());
            let job = spawn(move || {
                for i in 0..CALLS {
                    echo(&caller, &node)?;
                    if i % 10 == 0 {
                        let args = [number as u8];
                        let done = caller.rcall_sync(1, LONG, &args, &mut [], SOON);
                        let status = done.map(|done| done.status).map_err(|f| f.error);
                        check_eq!(status, Ok(number as i32));
                    }
                }
                Ok(())
            })?;
            jobs.push(job, GFP_KERNEL)?;
        }
        for job in jobs {
            job.join()??;
        }
        check_eq!(caller.calls.waiting(), 0);
        let calls = CALLERS * (CALLS + CALLS.div_ceil(10));
        let stats = &node.peer(0).ok_or(EINVAL)?.stats;
        check_eq!(stats.rx_rcalls.get(), calls);
        check_eq!(caller.peer(1).map(|p| p.stats.tx_rcalls.get()), Some(calls));
        Ok(())
    }

    /// Calls are bounded, too, by a bound of their own.
    #[test]
    fn too_many_calls() -> Result {
        let mut plan = Plan::small(2);
        plan.limits.max_rcall = 4096;
        plan.limits.rcall_bytes = 16 << 10;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        register_held(&node, &latch)?;
        let args = [0; 4096];
        for _ in 0..3 {
            caller.rcall(1, LONG, &args, Timeout::NoWait).here()?;
        }
        check_eq!(caller.rcall(1, LONG, &args, Timeout::NoWait), Err(EAGAIN));
        let result = caller.rcall(1, LONG, &args, Timeout::After(20));
        check_eq!(result, Err(ETIMEDOUT));
        // Messages have a bound of their own; replies have none.
        register_echo(&caller)?;
        send(&caller, &node, 1, b"passes")?;
        expect(&node, &caller, 1, b"passes")?;
        echo(&node, &caller)?;
        let theirs = caller.clone();
        let waiter = spawn(move || theirs.rcall(1, LONG, &[0; 4096], SOON))?;
        waiter.wait_asleep()?;
        latch.open();
        check_eq!(waiter.join()?, Ok(()));
        Ok(())
    }

    #[test]
    fn no_such_node() -> Result {
        let cluster = Cluster::of(2)?;
        let node = cluster.node(0)?;
        for id in [0, 2, 255] {
            check_eq!(call(&node, id, SHORT), Err(EINVAL));
            check_eq!(node.rcall(id, SHORT, &[], SOON), Err(EINVAL));
        }
        Ok(())
    }
}
