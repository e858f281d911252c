// SPDX-License-Identifier: GPL-2.0

//! Stopping a node, at any moment: promptly, all are told, and nothing is left.

use super::harness::*;
use super::net::{
    Client,
    Trap, //
};
use super::sys;
use crate::config::NodeId;
use crate::conn::hello::GREETING_LEN;
use crate::node::Node;
use crate::rcall::handlers::Class;
use crate::sys::clock;
use crate::sys::clock::Millis;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

const TAG: u32 = 7;
const LONG: u32 = 2;

/// How long a node may take to stop, with whatever goes on around it.
const PROMPTLY: Millis = SOON_MS / 4;

/// Stops a node; that must not take long.
#[track_caller]
fn stop_promptly(cluster: &mut Cluster, id: NodeId) -> Result {
    let begin = clock::now();
    cluster.stop(id);
    check!(clock::now() - begin < PROMPTLY);
    Ok(())
}

/// Whether that is what somebody is told when a node stops, here or there.
fn is_the_end(error: Error) -> bool {
    [ESHUTDOWN, EHOSTDOWN].contains(&error)
}

/// Does something again and again until it fails. Returns how, and counts.
fn repeat(
    count: &Arc<Atomic<u64>>,
    mut body: impl FnMut() -> Result + Send + 'static,
) -> Result<Job<Error>> {
    let count = count.clone();
    spawn(move || loop {
        match body() {
            Ok(()) => count.fetch_add(1, Relaxed),
            Err(e) => return e,
        };
    })
}

/// What goes on between two nodes.
struct Load {
    count: Arc<Atomic<u64>>,
    jobs: KVec<Job<Error>>,
}

impl Load {
    /// Node `from` sends to `to` and calls it, in three ways.
    fn new(from: &Arc<Node>, to: NodeId) -> Result<Self> {
        let count = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let mut jobs = KVec::new();
        let node = from.clone();
        let send = move || node.send(to, TAG, &[1; 2000], SOON);
        jobs.push(repeat(&count, send)?, GFP_KERNEL)?;
        let node = from.clone();
        let rcall = move || node.rcall(to, LONG, &[1; 100], SOON);
        jobs.push(repeat(&count, rcall)?, GFP_KERNEL)?;
        for func in [ECHO, LONG] {
            let node = from.clone();
            let call = move || {
                let mut reply = [0; 100];
                let result = node.rcall_sync(to, func, &[1; 100], &mut reply, SOON);
                result.map(|_| ()).map_err(|failure| failure.error)
            };
            jobs.push(repeat(&count, call)?, GFP_KERNEL)?;
        }
        Ok(Self { count, jobs })
    }

    /// Node `at` receives what anybody sends.
    fn receive(at: &Arc<Node>) -> Result<Self> {
        let count = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let mut jobs = KVec::new();
        for _ in 0..2 {
            let node = at.clone();
            let mut buf = KVec::from_elem(0, 2000, GFP_KERNEL)?;
            let receive = move || receive(&node, None, Some(TAG), &mut buf, SOON).map(|_| ());
            jobs.push(repeat(&count, receive)?, GFP_KERNEL)?;
        }
        Ok(Self { count, jobs })
    }

    /// Waits until some more has been done.
    #[track_caller]
    fn goes_on(&self) -> Result {
        let before = self.count.load(Relaxed);
        eventually(|| self.count.load(Relaxed) >= before + 5)
    }

    /// Waits until everybody has been told.
    #[track_caller]
    fn ends(self) -> Result {
        for job in self.jobs {
            let error = job.join()?;
            if !is_the_end(error) {
                pr_err!("told {:?}\n", error);
            }
            check!(is_the_end(error));
        }
        Ok(())
    }
}

/// A cluster with a gate below each node, and what of it must be gone in the end.
struct Remains {
    sockets: usize,
    module_refs: i32,
    /// Handlers that nodes hold.
    handlers: Arc<Atomic<usize>>,
}

/// Counted for as long as it lives.
struct Counted(Arc<Atomic<usize>>);

impl Counted {
    fn new(count: &Arc<Atomic<usize>>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Remains {
    /// What there is before.
    fn before() -> Result<Self> {
        Ok(Self {
            sockets: sys::tcp_sockets(),
            module_refs: sys::module_refs(),
            handlers: Arc::new(Atomic::new(0), GFP_KERNEL)?,
        })
    }

    /// Lets it be seen whether a node is freed.
    fn watch(&self, node: &Node) -> Result {
        let counted = Counted::new(&self.handlers);
        let function = move |_: &mut crate::rcall::handlers::Call<'_>| {
            let _counted = &counted;
            0
        };
        let owner = sys::this_module();
        node.register(handler(LONG + 1, Class::Long, owner, function)?)
    }

    /// Ends a cluster, and checks that there is no more than before.
    #[track_caller]
    fn after(&self, cluster: Cluster) -> Result {
        let gates = cluster.gates()?;
        drop(cluster);
        let links = gates.iter().map(|gate| gate.links()).sum::<usize>();
        check_eq!(links, 0);
        check_eq!(self.handlers.load(Relaxed), 0);
        check_eq!(sys::module_refs(), self.module_refs);
        // TCP may yet have to see to the end of some.
        eventually(|| sys::tcp_sockets() == self.sockets)
    }
}

#[kunit_tests(kccm_teardown)]
mod tests {
    use super::*;

    /// P11: senders, callers and receivers everywhere: all who deal with the node that stops are told,
    /// those who do not go on.
    #[test]
    fn under_load() -> Result {
        let mut plan = Plan::small(3);
        // So that nobody waits behind more calls than can be run in reasonable time.
        (plan.limits.max_rcall, plan.limits.rcall_bytes) = (1000, 8 << 10);
        let mut cluster = Cluster::new(plan)?;
        for node in cluster.nodes() {
            register_echo(node)?;
            register(node, LONG, Class::Long, |call| call.args.len() as i32)?;
        }
        let (mut ending, mut going_on) = (KVec::new(), KVec::new());
        for node in cluster.nodes() {
            let receivers = Load::receive(node)?;
            let ends = node.id() == 1;
            if ends { &mut ending } else { &mut going_on }.push(receivers, GFP_KERNEL)?;
            for peer in node.peers() {
                let load = Load::new(node, peer.id)?;
                let ends = ends || peer.id == 1;
                if ends { &mut ending } else { &mut going_on }.push(load, GFP_KERNEL)?;
            }
        }
        for loads in [&ending, &going_on] {
            for load in loads {
                load.goes_on()?;
            }
        }
        stop_promptly(&mut cluster, 1)?;
        for load in ending {
            load.ends()?;
        }
        for load in &going_on {
            load.goes_on()?;
        }
        stop_promptly(&mut cluster, 0)?;
        stop_promptly(&mut cluster, 2)?;
        for load in going_on {
            load.ends()?;
        }
        Ok(())
    }

    /// Twenty times, after some use: no thread, socket, connection, node or reference is left.
    #[test]
    fn nothing_is_left() -> Result {
        let remains = Remains::before()?;
        for _ in 0..20 {
            let cluster = Cluster::new(Plan::gated(2)?)?;
            let (one, other) = cluster.pair()?;
            for node in [&one, &other] {
                remains.watch(node)?;
                register_echo(node)?;
            }
            all_talk(&cluster)?;
            check_eq!(call(&one, 1, LONG + 1), Ok(0));
            // One that nobody receives.
            send(&one, &other, TAG, b"left")?;
            drop((one, other));
            remains.after(cluster)?;
        }
        Ok(())
    }

    /// At any stage of connecting.
    #[test]
    fn while_connecting() -> Result {
        let remains = Remains::before()?;
        for ms in 0..10 {
            let mut cluster = Cluster::idle(Plan::gated(3)?)?;
            for id in [2, 0, 1] {
                cluster.start(id)?;
                remains.watch(&*cluster.node(id)?)?;
                pause(ms % 5);
            }
            remains.after(cluster)?;
        }
        Ok(())
    }

    /// With attempts under way, and callers that have said nothing.
    #[test]
    fn with_nobody_to_talk_to() -> Result {
        let remains = Remains::before()?;
        let mut cluster = Cluster::idle(Plan::gated(3)?)?;
        let trap = Trap::set(cluster.addr(2))?;
        cluster.start(1)?;
        remains.watch(&*cluster.node(1)?)?;
        let caught = trap.catch()?;
        let client = Client::connect(own_ip(0), cluster.addr(1))?;
        client.say(b"KCCM")?;
        stop_promptly(&mut cluster, 1)?;
        client.wait_closed()?;
        caught.wait_closed()?;
        drop((client, caught, trap));
        remains.after(cluster)
    }

    /// Long handlers that wait for what will not come any more.
    #[test]
    fn with_handlers_that_wait() -> Result {
        let mut cluster = Cluster::new(Plan::small(3))?;
        let latch = Latch::new()?;
        cluster.stop(2);
        let (caller, node) = cluster.pair()?;
        register_latched(&caller, LONG, Class::Long, &latch)?;
        let theirs = node.clone();
        register(&node, LONG, Class::Long, move |call| {
            let forever = Timeout::Forever;
            let result = match call.args {
                [0] => receive(&theirs, None, None, &mut [], forever).map(|_| ()),
                [1] => receive(&theirs, Some(0), None, &mut [], forever).map(|_| ()),
                [2] => theirs.wait_up(None, forever),
                [3] => theirs.send(0, TAG, &[0; SMALL_MESSAGE], forever),
                _ => match theirs.rcall_sync(0, LONG, &[], &mut [], forever) {
                    Ok(_) => Ok(()),
                    Err(failure) => Err(failure.error),
                },
            };
            result.map_or_else(|e| e.to_errno(), |()| 0)
        })?;
        let message = &[0; SMALL_MESSAGE];
        while node.send(0, TAG, message, Timeout::NoWait).is_ok() {}
        let mut jobs = KVec::new();
        for which in 0..5_u8 {
            let caller = caller.clone();
            let call = move || {
                let result = caller.rcall_sync(1, LONG, &[which], &mut [], SOON);
                result.err().map(|failure| failure.error)
            };
            jobs.push(spawn(call)?, GFP_KERNEL)?;
        }
        latch.wait_held(1)?;
        eventually(|| node.endpoint.waiting().1 == 2)?;
        let result = stop_promptly(&mut cluster, 1);
        for job in jobs {
            check_eq!(job.join()?, Some(EHOSTDOWN));
        }
        latch.open();
        // The node holds it, and it holds the node.
        node.unregister(LONG)?;
        result
    }

    /// A connection that ends before anybody has begun to watch it.
    #[test]
    fn connection_ends_before_it_is_watched() -> Result {
        let remains = Remains::before()?;
        let mut cluster = Cluster::idle(Plan::gated(2)?)?;
        let trap = Trap::set(cluster.addr(1))?;
        cluster.start(0)?;
        let node = cluster.node(0)?;
        remains.watch(&node)?;
        let before = trap.catch()?;
        // That it greets means that it is watched.
        before.hear::<GREETING_LEN>().here()?;
        let theirs = node.clone();
        // Between having been made and being attached to, as if by another thread.
        cluster.gate(0)?.before_attach(move || {
            if let Some(peer) = theirs.peer(1) {
                theirs.disconnect(peer, false);
            }
        })?;
        drop(before);
        // There is another attempt, so that one has come to its end.
        let peer = node.peer(1).ok_or(EINVAL)?;
        eventually(|| peer.stats.attempts.get() == 3)?;
        drop((trap, node));
        remains.after(cluster)
    }

    /// The same for one that came in.
    #[test]
    fn caller_goes_before_it_is_watched() -> Result {
        let remains = Remains::before()?;
        let mut cluster = Cluster::idle(Plan::gated(2)?)?;
        cluster.start(1)?;
        let node = cluster.node(1)?;
        remains.watch(&node)?;
        let theirs = node.clone();
        let gate = cluster.gate(1)?;
        gate.before_attach(move || theirs.hang_up_pending())?;
        Client::connect(own_ip(0), cluster.addr(1))?.wait_closed()?;
        drop(node);
        remains.after(cluster)
    }

    /// A connection that somebody still has in hand when the listeners have ended.
    #[test]
    fn connection_is_kept_too_long() -> Result {
        let remains = Remains::before()?;
        let mut cluster = Cluster::new(Plan::gated(2)?)?;
        let node = cluster.node(0)?;
        remains.watch(&node)?;
        let conn = node.peer(1).and_then(|peer| peer.conn()).ok_or(EINVAL)?;
        stop_promptly(&mut cluster, 0)?;
        check!(conn.failure().is_some());
        conn.schedule();
        drop((node, conn));
        remains.after(cluster)
    }

    /// A node that stops, while a peer that is slow to read floods it, is heard to say so by that peer,
    /// and so is all that it had sent before.
    #[test]
    fn last_words_are_heard() -> Result {
        let mut plan = Plan::of(2);
        // Nothing else takes it down in the time that there is.
        plan.limits.dead_ms = 10 * SOON_MS as u32;
        let mut cluster = Cluster::new(plan)?;
        let (node, slow) = cluster.pair()?;
        let latch = Latch::new()?;
        register_latched(&slow, LONG, Class::Short, &latch)?;
        node.rcall(1, LONG, &[], SOON)?;
        latch.wait_held(1)?;
        // More than TCP lets out before it is read.
        let message = pattern(60_000, 1)?;
        for _ in 0..5 {
            node.send(1, TAG, &message, Timeout::NoWait)?;
        }
        let conn = node.peer(1).and_then(|peer| peer.conn()).ok_or(EINVAL)?;
        let theirs = slow.clone();
        let flood: Job<Result> = spawn(move || {
            eventually(|| conn.failure().is_some())?;
            // So that something comes in for what has been closed.
            for _ in 0..10 {
                theirs.send(0, TAG, &[0; 1000], Timeout::NoWait)?;
            }
            latch.open();
            Ok(())
        })?;
        drop(node);
        stop_promptly(&mut cluster, 0)?;
        flood.join()??;
        sees_down(&slow, 0)?;
        let mut buf = KVVec::from_elem(0, message.len(), GFP_KERNEL)?;
        for _ in 0..5 {
            receive(&slow, None, Some(TAG), &mut buf, Timeout::NoWait).here()?;
        }
        Ok(())
    }

    /// So is one that had more to send than TCP has room for, although it may be reading something long;
    /// and what it was in the middle of sending is whole.
    #[test]
    fn last_words_find_room() -> Result {
        const DRAG: Millis = 200;
        for (len, reads) in [
            (1 << 10, false),
            (64 << 10, false),
            (200, true),
            (64 << 10, true),
        ] {
            let mut plan = Plan::gated(2)?;
            plan.limits.dead_ms = 10 * SOON_MS as u32;
            let mut cluster = Cluster::new(plan)?;
            let (node, slow) = cluster.pair()?;
            let gate = cluster.gate(0)?;
            let latch = hold_listener(&node, &slow, LONG)?;
            let message = pattern(len, 1)?;
            eventually(|| {
                let sent = node.send(1, TAG, &message, Timeout::NoWait);
                sent.is_err() || gate.full() > 0
            })?;
            check!(gate.full() > 0);
            if reads {
                gate.set_drag(DRAG);
                let at = slow.me().addr.ip();
                let looks = gate.looks(at);
                slow.send(0, TAG, &pattern(1 << 20, 2)?, SOON).here()?;
                // The header, and then the payload.
                eventually(|| gate.looks(at) >= looks + 2)?;
            }
            let conn = node.peer(1).and_then(|peer| peer.conn()).ok_or(EINVAL)?;
            let opener: Job<Result> = spawn(move || {
                let ended = eventually(|| conn.failure().is_some());
                latch.open();
                ended
            })?;
            drop(node);
            stop_promptly(&mut cluster, 0)?;
            opener.join()??;
            sees_down(&slow, 0)?;
            let mut buf = KVVec::from_elem(0, len, GFP_KERNEL)?;
            while receive(&slow, None, Some(TAG), &mut buf, Timeout::NoWait).is_ok() {
                check!(buf[..] == message[..]);
            }
        }
        Ok(())
    }
}
