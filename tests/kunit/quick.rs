// SPDX-License-Identifier: GPL-2.0

//! What is seen to in the upcall: handlers for softirqs, and replies.

use super::harness::*;
use super::net::Client;
use crate::conn::frame::{
    Header,
    Outcome,
    HEADER_LEN, //
};
use crate::listener::quick::{
    Memory,
    SCARCE, //
};
use crate::node::Node;
use crate::rcall::handlers::{
    Call,
    Class, //
};
use crate::sys::context::in_softirq;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::Arc;

const FUNC: u32 = 7;
const BUSY: u32 = 8;

/// How often a handler has run.
#[derive(Default)]
struct Runs {
    /// In all.
    all: Counted,
    /// In the upcall, not in the listener.
    quick: Counted,
    /// Where it might have slept.
    exposed: Counted,
    /// Not in the order in which the calls were made.
    wrong: Counted,
}

struct Counted(Atomic<u64>);

impl Default for Counted {
    fn default() -> Self {
        Self(Atomic::new(0))
    }
}

impl Counted {
    fn inc(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

fn echo(call: &mut Call<'_>) {
    let args = call.args;
    if let Some(reply) = &mut call.reply {
        let len = args.len().min(reply.len());
        reply[..len].copy_from_slice(&args[..len]);
    }
    call.reply_len = args.len();
}

/// Registers an echo for softirqs.
fn register_quick(node: &Arc<Node>) -> Result<Arc<Runs>> {
    let runs = Arc::new(Runs::default(), GFP_KERNEL)?;
    let (theirs, queues) = (runs.clone(), node.queues.clone());
    register(node, FUNC, Class::Softirq, move |call| {
        let number = call.args.first_chunk().copied().map(u64::from_le_bytes);
        if number.is_some_and(|number| number != theirs.all.get()) {
            theirs.wrong.inc();
        }
        theirs.all.inc();
        if !queues.is_listener() {
            theirs.quick.inc();
        }
        if !in_softirq() {
            theirs.exposed.inc();
        }
        echo(call);
        0
    })?;
    Ok(runs)
}

/// Arguments of some length that begin with a number.
fn numbered(number: u64, len: usize) -> Result<KVVec<u8>> {
    let mut args = pattern(len.max(8), number)?;
    args[..8].copy_from_slice(&number.to_le_bytes());
    Ok(args)
}

/// Has a call echoed.
fn call_echo(from: &Node, to: &Node, number: u64, len: usize) -> Result {
    let args = numbered(number, len)?;
    let mut reply = KVVec::from_elem(0, args.len(), GFP_KERNEL)?;
    let success = from
        .rcall_sync(to.id(), FUNC, &args, &mut reply, SOON)
        .map_err(|failure| failure.error)?;
    check_eq!(success.len, args.len());
    check!(reply[..] == args[..]);
    Ok(())
}

/// Of one thing upcalls find no memory for as long as this is there, at any node.
struct Scarcity(());

impl Scarcity {
    /// From now on.
    fn of(what: Memory) -> Self {
        SCARCE.store(1 << what as u32, Relaxed);
        Self(())
    }
}

impl Drop for Scarcity {
    fn drop(&mut self) {
        SCARCE.store(0, Relaxed);
    }
}

/// A node that is connected to somebody who is none, with the id 0.
fn joined() -> Result<(Cluster, Arc<Node>, Client)> {
    let mut plan = Plan::of(2);
    plan.ip = own_ip;
    let mut cluster = Cluster::idle(plan)?;
    cluster.start(1)?;
    let node = cluster.node(1)?;
    let client = Client::join(&cluster, &cluster.stranger(0, 7)?, 1)?;
    node.wait_up(Some(0), SOON).here()?;
    Ok((cluster, node, client))
}

#[kunit_tests(kccm_quick)]
mod tests {
    use super::*;

    /// Calls are run where they come in, or by the listener, and nowhere where a handler could sleep;
    /// each once, in order, and its reply is that of this call.
    #[test]
    fn calls_of_all_lengths() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let runs = register_quick(&node)?;
        const LENGTHS: [usize; 8] = [8, 64, 900, 4056, 8192, 20_000, 65_536, 300_000];
        let mut number = 0;
        for _ in 0..often(40) {
            for len in LENGTHS {
                call_echo(&caller, &node, number, len)?;
                number += 1;
            }
        }
        node.unregister(FUNC)?;
        check_eq!(runs.all.get(), number);
        check_eq!(runs.wrong.get(), 0);
        check_eq!(runs.exposed.get(), 0);
        // As a rule the short ones are not the listener's.
        check!(runs.quick.get() > number / 10);
        check_eq!(call(&caller, 1, FUNC), Err(EOPNOTSUPP));
        Ok(())
    }

    /// Asynchronous calls, short ones and long ones in turn, which go different ways, stay in order;
    /// what they cost is released, and granted again, wherever they have run.
    #[test]
    fn calls_without_end() -> Result {
        const COUNT: u64 = often(4000);
        let mut plan = Plan::of(2);
        plan.limits.max_rcall = 16 << 10;
        plan.limits.rcall_bytes = 64 << 10;
        let cluster = Cluster::new(plan)?;
        let (caller, node) = cluster.pair()?;
        let runs = register_quick(&node)?;
        for number in 0..COUNT {
            let len = if number % 7 == 3 { 16 << 10 } else { 100 };
            let args = numbered(number, len)?;
            caller.rcall(1, FUNC, &args, SOON).here()?;
        }
        eventually(|| runs.all.get() == COUNT)?;
        node.unregister(FUNC)?;
        check_eq!(runs.wrong.get(), 0);
        check_eq!(runs.exposed.get(), 0);
        eventually(|| caller.peer(1).is_some_and(|p| p.snapshot().kept == [0, 0]))
    }

    /// A reply that could have been long, and is none, waits for nothing to follow it.
    #[test]
    fn empty_reply_is_not_held_back() -> Result {
        let cluster = Cluster::new(Plan::gated(2)?)?;
        let (caller, node) = cluster.pair()?;
        let gate = cluster.gate(1)?;
        let mut reply = KVVec::from_elem(0, 40_000, GFP_KERNEL)?;
        for class in [Class::Short, Class::Long, Class::Softirq] {
            register(&node, FUNC, class, |call| {
                call.reply_len = call.args.len();
                0
            })?;
            for len in [0, 3000, 40_000] {
                let args = pattern(len, 1)?;
                let called = caller.rcall_sync(1, FUNC, &args, &mut reply, SOON);
                check!(called.is_ok_and(|success| success.len == len));
                check!(!gate.corked());
            }
            node.unregister(FUNC)?;
        }
        Ok(())
    }

    /// A listener that is busy with one node holds up no other's.
    #[test]
    fn calls_pass_a_busy_listener() -> Result {
        let cluster = Cluster::of(3)?;
        let (zero, one, two) = cluster.trio()?;
        let runs = register_quick(&one)?;
        let latch = Latch::new()?;
        register_latched(&one, BUSY, Class::Short, &latch)?;
        let theirs = zero.clone();
        let busy = spawn(move || call(&theirs, 1, BUSY))?;
        latch.wait_held(1)?;
        for number in 0..100 {
            call_echo(&two, &one, number, 64)?;
        }
        check!(!busy.is_done());
        check_eq!(runs.quick.get(), 100);
        latch.open();
        check_eq!(busy.join()?, Ok(0));
        Ok(())
    }

    /// Calls for which there is no memory in the upcall are the listener's: each is run once, in order, and
    /// its reply is right. When there is memory again, so is the upcall.
    #[test]
    fn memory_is_short() -> Result {
        // Longer than what has a place of its own in a frame.
        const LONG: usize = 3000;
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let runs = register_quick(&node)?;
        let mut number = 0;
        for what in [Memory::Frame, Memory::Reply, Memory::Arguments] {
            let before = runs.quick.get();
            let scarcity = Scarcity::of(what);
            for _ in 0..often(50) {
                call_echo(&caller, &node, number, LONG)?;
                // And one without reply behind it.
                caller
                    .rcall(1, FUNC, &numbered(number + 1, LONG)?, SOON)
                    .here()?;
                number += 2;
            }
            eventually(|| runs.all.get() == number)?;
            let without = runs.quick.get() - before;
            drop(scarcity);
            match what {
                // Calls without reply have no frame for one.
                Memory::Frame => check!(without <= often(50)),
                Memory::Reply | Memory::Arguments => check_eq!(without, 0),
            }
            let mut called = Ok(());
            eventually(|| {
                called = call_echo(&caller, &node, number, 64);
                number += 1;
                called.is_err() || runs.quick.get() > before + without
            })?;
            called?;
        }
        node.unregister(FUNC)?;
        check_eq!(runs.all.get(), number);
        check_eq!(runs.wrong.get(), 0);
        check_eq!(runs.exposed.get(), 0);
        eventually(|| caller.peer(1).is_some_and(|p| p.snapshot().kept == [0, 0]))
    }

    /// P11: calls both ways while the connection is broken again and again.
    #[test]
    fn nothing_is_lost_or_doubled() -> Result {
        const COUNT: u64 = often(3000);
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        let mut jobs = KVec::new();
        let mut all_runs = KVec::new();
        let enough = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        for (from, to) in [(&zero, &one), (&one, &zero)] {
            all_runs.push(register_quick(to)?, GFP_KERNEL)?;
            let (from, to, told) = (from.clone(), to.clone(), enough.clone());
            let call_each = move || -> Result<u64> {
                let mut number = 0;
                while number < COUNT || !told.load(Relaxed) {
                    let len = match number % 50 {
                        // So long that the listener has to do it.
                        0 => 70_000,
                        25 => 20_000,
                        _ => 64,
                    };
                    call_echo(&from, &to, number, len).here()?;
                    number += 1;
                }
                Ok(number)
            };
            jobs.push(spawn(call_each)?, GFP_KERNEL)?;
        }
        let mut breaks = 0u32;
        while jobs.iter().any(|job| !job.is_done()) {
            let (node, other) = [(&zero, &one), (&one, &zero)][breaks as usize % 2];
            let before = epoch(node, other.id());
            node.disconnect(node.peer(other.id()).ok_or(EINVAL)?, true);
            eventually(|| epoch(node, other.id()) > before)?;
            breaks += 1;
            enough.store(breaks > 2, Relaxed);
            pause(3);
        }
        for (job, runs) in jobs.into_iter().zip(&all_runs) {
            check_eq!(runs.all.get(), job.join()??);
            check_eq!(runs.wrong.get(), 0);
            check_eq!(runs.exposed.get(), 0);
        }
        Ok(())
    }

    /// Handlers come and go while they are called. A call that finds none says so.
    #[test]
    fn handlers_come_and_go() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let stop = Arc::new(Atomic::new(0u32), GFP_KERNEL)?;
        let (theirs, told) = (caller.clone(), stop.clone());
        let calls = spawn(move || {
            let mut found = [0u64; 2];
            while told.load(Relaxed) == 0 {
                match call(&theirs, 1, FUNC) {
                    Ok(_) => found[0] += 1,
                    Err(e) if e == EOPNOTSUPP => found[1] += 1,
                    Err(e) => return Err(e),
                }
            }
            Ok(found)
        })?;
        for _ in 0..often(300) {
            let runs = register_quick(&node)?;
            eventually(|| runs.all.get() > 2)?;
            node.unregister(FUNC)?;
            let after = runs.all.get();
            check!(runs.exposed.get() == 0);
            // A call that was late would show now.
            pause(1);
            check_eq!(runs.all.get(), after);
        }
        stop.store(1, Relaxed);
        let found = calls.join()??;
        check!(found[0] > often(300));
        Ok(())
    }

    /// A reply goes straight into the buffer of its caller, in however many pieces it comes; what does
    /// not fit there is lost, and so is what comes when the caller has gone.
    #[test]
    fn replies_in_pieces() -> Result {
        let (_cluster, node, client) = joined()?;
        let ask = |room: usize, timeout| {
            let node = node.clone();
            spawn(move || {
                let mut reply = KVVec::from_elem(0, room, GFP_KERNEL)?;
                let success = node.rcall_sync(0, FUNC, &[], &mut reply, timeout);
                let success = success.map_err(|failure| failure.error)?;
                reply.truncate(success.len);
                Ok::<_, Error>(reply)
            })
        };
        let answer = |bytes: &[u8]| {
            let id = loop {
                if let Header::CallSync { id, .. } = client.hear_frame()? {
                    break id;
                }
            };
            let len = bytes.len() as u32;
            let header = Header::Reply {
                id,
                outcome: Outcome::Ran,
                status: 0,
                needed: len,
                len,
            };
            let mut said = KVVec::with_capacity(HEADER_LEN + bytes.len(), GFP_KERNEL)?;
            said.extend_from_slice(&client.frame(header), GFP_KERNEL)?;
            said.extend_from_slice(bytes, GFP_KERNEL)?;
            Ok::<_, Error>(said)
        };
        for len in [1, 100, 3000, 65_536, 100_000] {
            let bytes = pattern(len, 1)?;
            for room in [len, len / 2] {
                for piece in [HEADER_LEN - 1, HEADER_LEN + 1, HEADER_LEN + len / 2] {
                    let caller = ask(room, SOON)?;
                    let said = answer(&bytes)?;
                    let (first, second) = said.split_at(piece);
                    client.say(first)?;
                    pause(2);
                    client.say(second)?;
                    let reply = caller.join()??;
                    check!(reply[..] == bytes[..room]);
                }
            }
        }
        let bytes = pattern(3000, 2)?;
        let caller = ask(3000, Timeout::After(20))?;
        let said = answer(&bytes)?;
        client.say(&said[..1000])?;
        check_eq!(caller.join()?.map(|_| ()), Err(ETIMEDOUT));
        client.say(&said[1000..])?;
        let caller = ask(3000, SOON)?;
        client.say(&answer(&bytes)?)?;
        check!(caller.join()??[..] == bytes[..]);
        check_eq!(epoch(&node, 0), 1);
        Ok(())
    }

    /// So are the arguments of a call that is run there: the rest of them is waited for, by nobody.
    #[test]
    fn calls_in_pieces() -> Result {
        let (_cluster, node, client) = joined()?;
        let runs = register_quick(&node)?;
        let mut number = 0;
        for len in [8, 100, 3000, 65_536, 100_000] {
            let quick = runs.quick.get();
            let pieces = [HEADER_LEN - 1, HEADER_LEN + 1, HEADER_LEN + len / 2];
            for piece in pieces {
                let header = Header::Call {
                    func: FUNC,
                    len: len as u32,
                };
                let mut said = KVVec::with_capacity(HEADER_LEN + len, GFP_KERNEL)?;
                said.extend_from_slice(&client.frame(header), GFP_KERNEL)?;
                said.extend_from_slice(&numbered(number, len)?, GFP_KERNEL)?;
                let (first, second) = said.split_at(piece);
                client.say(first)?;
                pause(2);
                client.say(second)?;
                number += 1;
                eventually(|| runs.all.get() == number)?;
            }
            // Part of a header is the listener's, and so is what TCP may not let come in before some
            // of it has been taken.
            let expected = match len {
                ..=3000 => 1..=3,
                3001..=65_536 => 0..=3,
                _ => 0..=0,
            };
            check!(expected.contains(&(runs.quick.get() - quick)));
        }
        check_eq!(runs.wrong.get(), 0);
        check_eq!(runs.exposed.get(), 0);
        check_eq!(epoch(&node, 0), 1);
        node.unregister(FUNC)
    }
}
