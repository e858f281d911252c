// SPDX-License-Identifier: GPL-2.0

//! What is sent is delivered exactly once and in order, however often connections break.

use super::harness::*;
use super::net::{
    anew,
    Client, //
};
use crate::config::{
    Limits,
    NodeId, //
};
use crate::conn::credit::{
    least_window,
    message_cost,
    Lane, //
};
use crate::conn::frame::tests::PING;
use crate::conn::frame::{
    Bye,
    Header,
    Numbers,
    HEADER_LEN, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Identity,
    Refusal,
    Standing, //
};
use crate::events::Event;
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
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};

const TAG: u32 = 7;
const FUNC: u32 = 1;

/// Two nodes, each with a gate.
fn gated_pair() -> Result<Cluster> {
    Cluster::new(Plan::gated(2)?)
}

/// Breaks the connection of a node to another, and waits for the next.
#[track_caller]
fn break_once(node: &Node, other: &Node) -> Result {
    let before = (epoch(node, other.id()), epoch(other, node.id()));
    node.disconnect(node.peer(other.id()).ok_or(EINVAL)?, true);
    eventually(|| epoch(node, other.id()) > before.0 && epoch(other, node.id()) > before.1)
}

/// Waits until nothing is kept for a peer any more.
#[track_caller]
fn all_acknowledged(node: &Node, peer: NodeId) -> Result {
    let kept = || node.peer(peer).map(|p| p.snapshot().kept);
    let reached = eventually(|| kept() == Some([0, 0]));
    if reached.is_err() {
        pr_err!("kept: {:?}\n", kept());
    }
    reached
}

/// Sends long messages to node 1, which does not read, until no more are let through. Returns how many
/// were.
fn fill(node: &Node, len: usize) -> Result<u32> {
    let message = pattern(len, 1)?;
    let mut sent = 0;
    let mut full_since = None;
    eventually(|| {
        let result = node.send(1, TAG, &message, Timeout::NoWait);
        if result.is_ok() {
            (sent, full_since) = (sent + 1, None);
        }
        // Of a window that is small TCP makes use after 200 ms (RFC 9293, section 3.8.6.2.1).
        let since = *full_since.get_or_insert(clock::now());
        result == Err(EAGAIN) && clock::now() > since + 500 * SLOWNESS
    })?;
    Ok(sent)
}

/// Receives the numbers from 0 to `count`, in order, and then nothing.
#[track_caller]
fn expect_numbers(at: &Node, from: NodeId, count: u64) -> Result {
    for number in 0..count {
        check_eq!(receive_number(at, Some(from), Some(TAG), SOON), Ok(number));
    }
    let more = receive_number(at, Some(from), None, Timeout::NoWait);
    check_eq!(more, Err(EAGAIN));
    Ok(())
}

fn send_numbers(from: &Node, to: NodeId, numbers: core::ops::Range<u64>) -> Result {
    for number in numbers {
        from.send(to, TAG, &number.to_le_bytes(), SOON).here()?;
    }
    Ok(())
}

/// A counter of calls, registered under [`FUNC`]; the handler returns how many there have been.
fn register_counter(node: &Node, class: Class, latch: Option<&Latch>) -> Result<Arc<Atomic<i32>>> {
    let count = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let (theirs, barrier) = (count.clone(), latch.map(Latch::barrier));
    register(node, FUNC, class, move |_| {
        if let Some(barrier) = &barrier {
            barrier.pass();
        }
        theirs.fetch_add(1, Relaxed) + 1
    })?;
    Ok(count)
}

#[kunit_tests(kccm_session)]
mod tests {
    use super::*;

    // ---- Exactly once, in order.

    /// P5, P11: messages both ways, and calls, while the connection is broken again and again, by
    /// either side.
    #[test]
    fn nothing_is_lost_or_doubled() -> Result {
        const COUNT: u64 = often(4000);
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        let calls = register_counter(&one, Class::Short, None)?;
        let mut jobs = KVec::new();
        for (from, to) in [(&zero, &one), (&one, &zero)] {
            let (sender, dst) = (from.clone(), to.id());
            let send = spawn(move || send_numbers(&sender, dst, 0..COUNT))?;
            jobs.push(send, GFP_KERNEL)?;
            let (receiver, source) = (to.clone(), from.id());
            let receive = spawn(move || expect_numbers(&receiver, source, COUNT))?;
            jobs.push(receive, GFP_KERNEL)?;
        }
        let caller = zero.clone();
        let enough = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let told = enough.clone();
        let calling = spawn(move || {
            let mut made = 0;
            while made < often(400) as i32 || !told.load(Relaxed) {
                // Once each, and the reply is that of this call.
                made += 1;
                check_eq!(call(&caller, 1, FUNC), Ok(made));
            }
            Ok::<_, Error>(made)
        })?;
        let mut breaks = 0;
        while !calling.is_done() || jobs.iter().any(|job| !job.is_done()) {
            let (node, other) = if breaks % 2 == 0 {
                (&zero, &one)
            } else {
                (&one, &zero)
            };
            break_once(node, other)?;
            breaks += 1;
            enough.store(breaks > 5, Relaxed);
            pause(5);
        }
        for job in jobs {
            job.join()??;
        }
        check_eq!(calls.load(Relaxed), calling.join()??);
        all_acknowledged(&zero, 1)?;
        all_acknowledged(&one, 0)?;
        check!(zero.peer(1).is_some_and(|p| p.stats.reconnects.get() > 5));
        Ok(())
    }

    /// What the network swallows is sent again over the next connection.
    #[test]
    fn swallowed_messages_come_again() -> Result {
        let cluster = gated_pair()?;
        let (zero, one) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        send_numbers(&zero, 1, 0..3)?;
        waiting(&one, 3, 0)?;
        gate.set_mute(true);
        send_numbers(&zero, 1, 3..10)?;
        steadily(30, || one.endpoint.waiting() == (3, 0))?;
        gate.set_mute(false);
        break_once(&zero, &one)?;
        waiting(&one, 10, 0)?;
        expect_numbers(&one, 0, 10)?;
        all_acknowledged(&zero, 1)
    }

    /// P9: a reply that was lost with its connection comes with the next; its handler does not run
    /// twice.
    #[test]
    fn lost_reply_comes_again() -> Result {
        for class in [Class::Short, Class::Long, Class::Softirq] {
            let cluster = gated_pair()?;
            let (caller, node) = cluster.pair()?;
            let count = register_counter(&node, class, None)?;
            let gate = cluster.gate(1)?;
            gate.set_mute(true);
            let theirs = caller.clone();
            let called = spawn(move || call(&theirs, 1, FUNC))?;
            eventually(|| count.load(Relaxed) == 1)?;
            steadily(30, || !called.is_done())?;
            gate.set_mute(false);
            break_once(&caller, &node)?;
            check_eq!(called.join()?, Ok(1));
            check_eq!(count.load(Relaxed), 1);
            node.unregister(FUNC)?;
        }
        Ok(())
    }

    /// A call goes on over whatever becomes of its connection while its handler runs.
    #[test]
    fn call_outlives_its_connection() -> Result {
        let cluster = Cluster::of(2)?;
        let (caller, node) = cluster.pair()?;
        let latch = Latch::new()?;
        let count = register_counter(&node, Class::Long, Some(&latch))?;
        let theirs = caller.clone();
        let called = spawn(move || call(&theirs, 1, FUNC))?;
        latch.wait_held(1)?;
        break_once(&caller, &node)?;
        break_once(&node, &caller)?;
        check!(!called.is_done());
        latch.open();
        check_eq!(called.join()?, Ok(1));
        check_eq!(count.load(Relaxed), 1);
        Ok(())
    }

    /// Nobody is told of a connection that breaks and is made again.
    #[test]
    fn short_break_is_nobody_s_business() -> Result {
        let cluster = Cluster::of(2)?;
        let (node, other) = cluster.pair()?;
        let told: Arc<Mutex<KVec<Event>>> =
            Arc::pin_init(new_mutex!(KVec::new(), "told"), GFP_KERNEL)?;
        let theirs = told.clone();
        node.subscribe(KBox::new(
            move |_: NodeId, event: Event, _: u64| {
                let _ = theirs.lock().push(event, GFP_KERNEL);
            },
            GFP_KERNEL,
        )?)?;
        eventually(|| told.lock().len() == 1)?;
        let theirs = node.clone();
        let receiver = spawn(move || receive_number(&theirs, Some(1), Some(TAG), SOON))?;
        receiver.wait_asleep()?;
        let session = node.peer(1).map(|p| p.snapshot().session);
        for _ in 0..3 {
            break_once(&node, &other)?;
        }
        check_eq!(node.peer(1).map(|p| p.snapshot().session), session);
        send_numbers(&other, 0, 5..6)?;
        check_eq!(receiver.join()?, Ok(5));
        check_eq!(told.lock()[..], [Event::Up]);
        Ok(())
    }

    // ---- Bounds.

    /// What is kept is bounded: then senders wait or are told, and go on when it is acknowledged.
    #[test]
    fn kept_frames_are_bounded() -> Result {
        for (frames, bytes) in [(5, 32 << 20), (100, 5 * (256 + 8))] {
            let mut plan = Plan::gated(2)?;
            plan.limits.kept_frames = frames;
            plan.limits.kept_bytes = bytes;
            let cluster = Cluster::new(plan)?;
            let (from, to) = cluster.pair()?;
            let gate = cluster.gate(0)?;
            // Acknowledgements do not come through.
            gate.set_deaf(true);
            send_numbers(&from, 1, 0..5)?;
            check_eq!(
                from.peer(1).map(|p| p.snapshot().kept),
                Some([5 * (256 + 8), 5])
            );
            let more = |timeout| from.send(1, TAG, &5_u64.to_le_bytes(), timeout);
            check_eq!(more(Timeout::NoWait), Err(EAGAIN));
            check_eq!(more(Timeout::After(20)), Err(ETIMEDOUT));
            check_eq!(from.rcall(1, FUNC, &[], Timeout::NoWait), Err(EAGAIN));
            let theirs = from.clone();
            let sender = spawn(move || theirs.send(1, TAG, &5_u64.to_le_bytes(), SOON))?;
            sender.wait_asleep()?;
            waiting(&to, 5, 0)?;
            check!(!sender.is_done());
            gate.set_deaf(false);
            break_once(&to, &from)?;
            check_eq!(sender.join()?, Ok(()));
            expect_numbers(&to, 0, 6)?;
            all_acknowledged(&from, 1)?;
        }
        Ok(())
    }

    /// Whatever is waited for, who waits can be killed: for room, for a confirmation, for a peer.
    #[test]
    fn waits_can_be_killed() -> Result {
        const KEPT: u64 = 5;
        let mut plan = Plan::gated(3)?;
        plan.limits.kept_frames = KEPT as u32;
        let mut cluster = Cluster::idle(plan)?;
        cluster.start(0)?;
        cluster.start(1)?;
        let (from, to) = cluster.pair()?;
        from.wait_up(Some(1), SOON).here()?;
        let gate = cluster.gate(0)?;
        // Acknowledgements do not come through.
        gate.set_deaf(true);
        send_numbers(&from, 1, 0..KEPT - 1)?;
        let theirs = from.clone();
        let confirmed = move || theirs.send_sync(1, TAG, &(KEPT - 1).to_le_bytes(), SOON);
        let mut jobs = KVec::with_capacity(4, GFP_KERNEL)?;
        jobs.push(spawn(confirmed)?, GFP_KERNEL)?;
        waiting(&to, KEPT as usize, 0)?;
        let theirs = from.clone();
        let message = move || theirs.send(1, TAG, &KEPT.to_le_bytes(), SOON);
        jobs.push(spawn(message)?, GFP_KERNEL)?;
        let theirs = from.clone();
        jobs.push(spawn(move || theirs.rcall(1, FUNC, &[], SOON))?, GFP_KERNEL)?;
        let theirs = from.clone();
        jobs.push(spawn(move || theirs.wait_up(Some(2), SOON))?, GFP_KERNEL)?;
        for job in jobs {
            job.wait_asleep()?;
            job.kill();
            check_eq!(job.join()?, Err(EINTR));
        }
        gate.set_deaf(false);
        break_once(&to, &from)?;
        // What had been sent is delivered, although nobody waits for that any more; the others are not.
        expect_numbers(&to, 0, KEPT)?;
        all_acknowledged(&from, 1)?;
        send_numbers(&from, 1, 0..1)?;
        expect_numbers(&to, 0, 1)
    }

    /// The other side is asked what it has when half of the room is taken, so that nobody has to wait
    /// until it says so by itself. Once, until it has said so.
    #[test]
    fn sender_asks_before_the_room_is_gone() -> Result {
        for (frames, bytes) in [(10, 32 << 20), (1000, 10 * message_cost(0))] {
            let (cluster, node, me) = with_client(|limits| {
                limits.kept_frames = frames;
                limits.kept_bytes = bytes;
            })?;
            let client = Client::join(&cluster, &me, 1)?;
            eventually(|| epoch(&node, 0) == 1)?;
            for begin in [0, 8] {
                for _ in 0..8 {
                    node.send(0, TAG, &[], Timeout::NoWait).here()?;
                }
                // Others may be sent while it is on its way.
                let mut asked_after = None;
                let mut heard = 0;
                while heard < 8 || asked_after.is_none() {
                    match next_frame(&client)? {
                        Header::Ping { answer: true } => {
                            check_eq!(asked_after.replace(heard), None);
                        }
                        frame => {
                            check_eq!(frame, Header::Message { tag: TAG, len: 0 });
                            heard += 1;
                        }
                    }
                }
                check!(asked_after >= Some(5));
                let ack = begin + 8;
                client.say(&PING.encode(Numbers { seq: 0, ack }))?;
                all_acknowledged(&node, 0)?;
            }
        }
        Ok(())
    }

    /// One frame is let through however long it is.
    #[test]
    fn longest_message_is_never_stuck() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.kept_bytes = 4096;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let long = pattern(200_000, 3)?;
        let mut received = pattern(200_000, 4)?;
        for _ in 0..5 {
            from.send(1, TAG, &long, SOON).here()?;
            receive(&to, Some(0), Some(TAG), &mut received, SOON).here()?;
            check!(received[..] == long[..]);
        }
        Ok(())
    }

    /// Who has waited for long goes first, in whichever lane: small calls do not take the room that a
    /// long message waits for.
    #[test]
    fn long_message_is_not_starved() -> Result {
        let mut plan = Plan::gated(2)?;
        plan.limits.kept_bytes = 4096;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let count = register_counter(&to, Class::Short, None)?;
        let gate = cluster.gate(0)?;
        // What is sent is kept until this is over.
        gate.set_deaf(true);
        let small = |timeout| from.rcall(1, FUNC, &[], timeout);
        small(SOON).here()?;
        let theirs = from.clone();
        let patience = Timeout::After(200 * SLOWNESS);
        let impatient = spawn(move || theirs.send(1, TAG, &[0; 8192], patience))?;
        impatient.wait_asleep()?;
        check_eq!(small(Timeout::NoWait), Err(EAGAIN));
        let theirs = from.clone();
        let behind = spawn(move || theirs.rcall(1, FUNC, &[], SOON))?;
        behind.wait_asleep()?;
        // Nobody waits for one that has given up.
        check_eq!(impatient.join()?, Err(ETIMEDOUT));
        check_eq!(behind.join()?, Ok(()));
        eventually(|| count.load(Relaxed) == 2)?;
        small(Timeout::NoWait).here()?;
        let theirs = from.clone();
        let long = spawn(move || theirs.send(1, TAG, &[0; 8192], SOON))?;
        long.wait_asleep()?;
        let theirs = from.clone();
        let behind = spawn(move || theirs.rcall(1, FUNC, &[], SOON))?;
        behind.wait_asleep()?;
        gate.set_deaf(false);
        break_once(&to, &from)?;
        check_eq!(long.join()?, Ok(()));
        check_eq!(behind.join()?, Ok(()));
        eventually(|| count.load(Relaxed) == 4)?;
        waiting(&to, 1, 0)?;
        all_acknowledged(&from, 1)
    }

    /// Of long messages only so many wait for TCP to take them: what is sent next, a call perhaps, waits
    /// for no more than those. Who has more to send holds up nobody else.
    #[test]
    fn unsent_messages_are_bounded() -> Result {
        const UNSENT: u64 = 256 << 10;
        const LEN: usize = 64 << 10;
        let mut plan = Plan::gated(2)?;
        plan.limits.unsent_bytes = UNSENT;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        let latch = hold_listener(&from, &to, FUNC)?;
        let message = pattern(LEN, 1)?;
        let mut sent = fill(&from, LEN)?;
        check!(gate.full() > 0);
        // That was not for want of any other room.
        let kept = || from.peer(1).map_or(0, |p| p.snapshot().kept[0]);
        check!(kept() + message_cost(LEN as u32) < Limits::DEFAULT.kept_bytes);
        let theirs = from.clone();
        let sender = spawn(move || theirs.send(1, TAG, &pattern(LEN, 1)?, SOON))?;
        sender.wait_asleep()?;
        from.rcall(1, FUNC, &[], Timeout::NoWait).here()?;
        check!(!sender.is_done());
        // While there is no connection nothing can wait for what is queued.
        from.disconnect(from.peer(1).ok_or(EINVAL)?, true);
        check_eq!(sender.join()?, Ok(()));
        sent += 1;
        eventually(|| {
            let more = from.send(1, TAG, &message, Timeout::NoWait).is_ok();
            sent += u32::from(more);
            more
        })?;
        latch.open();
        let mut buf = KVVec::from_elem(0, LEN, GFP_KERNEL)?;
        for _ in 0..sent {
            receive(&to, Some(0), Some(TAG), &mut buf, SOON).here()?;
            check!(buf[..] == message[..]);
        }
        all_acknowledged(&from, 1)?;
        check_eq!(from.peer(1).map(|p| p.snapshot().unsent), Some(0));
        Ok(())
    }

    /// Senders that wait because too much has yet to be sent: one longer than all that may wait is no
    /// exception, who gives up or is killed holds up nobody, and short messages pass.
    #[test]
    fn unsent_messages_are_waited_for() -> Result {
        const LEN: usize = 64 << 10;
        let mut plan = Plan::gated(2)?;
        plan.limits.unsent_bytes = 4096;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let latch = hold_listener(&from, &to, FUNC)?;
        let sent = fill(&from, LEN)?;
        let theirs = from.clone();
        let patience = Timeout::After(200 * SLOWNESS);
        let impatient = spawn(move || theirs.send(1, TAG, &pattern(LEN, 2)?, patience))?;
        impatient.wait_asleep()?;
        let theirs = from.clone();
        let patient = spawn(move || theirs.send(1, TAG, &pattern(2 * LEN, 3)?, SOON))?;
        patient.wait_asleep()?;
        // These go before the two, but not any number of them.
        send_numbers(&from, 1, 0..10)?;
        let mut count = 10_u64;
        eventually(|| {
            let passes = from.send(1, TAG, &count.to_le_bytes(), Timeout::NoWait);
            count += u64::from(passes.is_ok());
            passes == Err(EAGAIN)
        })?;
        check!(count < 20);
        check_eq!(
            from.send(1, TAG, &pattern(LEN, 2)?, Timeout::NoWait),
            Err(EAGAIN)
        );
        check_eq!(impatient.join()?, Err(ETIMEDOUT));
        let theirs = from.clone();
        let killed = spawn(move || theirs.send(1, TAG, &pattern(LEN, 2)?, SOON))?;
        killed.wait_asleep()?;
        killed.kill();
        check_eq!(killed.join()?, Err(EINTR));
        check!(!patient.is_done());
        latch.open();
        check_eq!(patient.join()?, Ok(()));
        let mut buf = KVVec::from_elem(0, 2 * LEN, GFP_KERNEL)?;
        for _ in 0..sent {
            let info = receive(&to, Some(0), Some(TAG), &mut buf, SOON).here()?;
            check_eq!(info.len, LEN);
        }
        for number in 0..count {
            check_eq!(receive_number(&to, Some(0), Some(TAG), SOON), Ok(number));
        }
        receive(&to, Some(0), Some(TAG), &mut buf, SOON).here()?;
        check!(buf[..] == pattern(2 * LEN, 3)?[..]);
        all_acknowledged(&from, 1)?;
        check_eq!(from.peer(1).map(|p| p.snapshot().unsent), Some(0));
        Ok(())
    }

    /// Who waits when the peer goes down is told, although there would be room for what is not sent.
    #[test]
    fn unsent_messages_end_with_the_peer() -> Result {
        const LEN: usize = 64 << 10;
        const DEAD_MS: Millis = 1000 * SLOWNESS;
        let mut plan = Plan::gated(2)?;
        plan.limits.unsent_bytes = 4096;
        plan.limits.dead_ms = DEAD_MS as u32;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let latch = hold_listener(&from, &to, FUNC)?;
        fill(&from, LEN)?;
        let theirs = from.clone();
        let sender = spawn(move || theirs.send(1, TAG, &pattern(LEN, 2)?, SOON))?;
        sender.wait_asleep()?;
        cluster.gate(0)?.set_deaf(true);
        check_eq!(sender.join()?, Err(EHOSTDOWN));
        latch.open();
        Ok(())
    }

    /// While the listener reads something long, which keeps the link from others, what they send is left
    /// to it: nobody waits for the link, and nobody for one who does.
    #[test]
    fn reader_sends_for_others() -> Result {
        const DRAG: Millis = 200;
        let cluster = gated_pair()?;
        let (from, to) = cluster.pair()?;
        let (gate, at) = (cluster.gate(1)?, from.me().addr.ip());
        gate.set_drag(DRAG);
        let looks = gate.looks(at);
        from.send(1, TAG, &pattern(1 << 20, 1)?, SOON).here()?;
        // The header, and then the long payload.
        eventually(|| gate.looks(at) >= looks + 2)?;
        let sends = gate.sends(at);
        let begin = clock::now();
        send_numbers(&to, 0, 0..3)?;
        // If the listener is still at the same read, which it need not be on a busy machine.
        if clock::now() < begin + DRAG / 2 {
            check_eq!(gate.sends(at), sends);
        }
        expect_numbers(&from, 1, 3)?;
        gate.set_drag(0);
        waiting(&to, 1, 0)
    }

    /// What was sent goes before a good-bye, even if it is still waiting for somebody else to send it.
    #[test]
    fn good_bye_comes_last() -> Result {
        const COUNT: u64 = 100;
        let cluster = gated_pair()?;
        let (from, to) = cluster.pair()?;
        let peer = from.peer(1).ok_or(EINVAL)?;
        let (gate, at) = (cluster.gate(0)?, peer.addr.ip());
        let before = gate.sends(at);
        gate.set_toll(100);
        let theirs = from.clone();
        let sender = spawn(move || send_numbers(&theirs, 1, 0..1))?;
        eventually(|| gate.sends(at) > before)?;
        // Whoever is sending takes these along, in the end.
        send_numbers(&from, 1, 1..COUNT)?;
        check!(!sender.is_done());
        from.set_admin_down(peer, true);
        check_eq!(sender.join()?, Ok(()));
        eventually(|| !to.peer(0).is_some_and(|peer| peer.is_up()))?;
        for number in 0..COUNT {
            check_eq!(receive_number(&to, Some(0), Some(TAG), SOON), Ok(number));
        }
        Ok(())
    }

    /// Acknowledgements come by themselves where nothing is sent that could carry them.
    #[test]
    fn silence_is_acknowledged() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        send_numbers(&from, 1, 0..1)?;
        all_acknowledged(&from, 1)?;
        // Nobody has received it, but it is delivered.
        expect_numbers(&to, 0, 1)?;
        let long = pattern(1 << 20, 3)?;
        from.send(1, TAG, &long, SOON).here()?;
        all_acknowledged(&from, 1)
    }

    // ---- Confirmation.

    /// A message is confirmed when it has been delivered, and not before.
    #[test]
    fn delivery_is_confirmed() -> Result {
        let cluster = gated_pair()?;
        let (from, to) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        for number in 0..100_u64 {
            from.send_sync(1, TAG, &number.to_le_bytes(), SOON).here()?;
            check_eq!(to.endpoint.waiting().0, number as usize + 1);
        }
        gate.set_mute(true);
        let theirs = from.clone();
        let sync = move |timeout| theirs.send_sync(1, TAG, &100_u64.to_le_bytes(), timeout);
        let sender = spawn(move || sync(SOON))?;
        sender.wait_asleep()?;
        let late = from.send_sync(1, TAG, &101_u64.to_le_bytes(), Timeout::After(20));
        check_eq!(late, Err(ETIMEDOUT));
        check!(!sender.is_done());
        gate.set_mute(false);
        break_once(&from, &to)?;
        check_eq!(sender.join()?, Ok(()));
        // Not confirmed in time, but delivered all the same.
        expect_numbers(&to, 0, 102)?;
        check_eq!(from.send_sync(1, TAG, &[], Timeout::NoWait), Err(EINVAL));
        check_eq!(from.send_sync(5, TAG, &[], SOON), Err(EINVAL));
        Ok(())
    }

    /// A confirmation that was lost with its connection comes as soon as there is another, of which the
    /// sender has to be told: no sign of life comes for long.
    #[test]
    fn lost_confirmation_comes_again() -> Result {
        let mut plan = Plan::gated(2)?;
        plan.limits.dead_ms = 10 * SOON_MS as u32;
        // The next attempt may not be heard of either.
        plan.limits.handshake_ms = 500 * SLOWNESS as u32;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        gate.set_deaf(true);
        let theirs = from.clone();
        let sender = spawn(move || theirs.send_sync(1, TAG, &[], Timeout::Forever))?;
        waiting(&to, 1, 0)?;
        steadily(60, || !sender.is_done())?;
        let peer = from.peer(1).ok_or(EINVAL)?;
        from.disconnect(peer, true);
        eventually(|| peer.line().is_none())?;
        gate.set_deaf(false);
        eventually(|| sender.is_done())?;
        check_eq!(sender.join()?, Ok(()));
        Ok(())
    }

    // ---- Down, and what that means.

    /// P11: a peer that cannot be heard of is down after `dead_ms`: who waits is told. What it was sent
    /// before that is delivered when it is back.
    #[test]
    fn down_is_not_the_end() -> Result {
        // Long enough for three threads to begin to wait.
        const DEAD_MS: Millis = 3000 * SLOWNESS;
        let mut plan = Plan::gated(2)?;
        plan.limits.dead_ms = DEAD_MS as u32;
        // A greeting may be lost, too.
        plan.limits.handshake_ms = DEAD_MS as u32;
        let cluster = Cluster::new(plan)?;
        let (from, to) = cluster.pair()?;
        let gate = cluster.gate(0)?;
        let session = from.peer(1).map(|p| p.snapshot().session);
        let count = register_counter(&to, Class::Short, None)?;
        gate.set_mute(true);
        gate.set_deaf(true);
        send_numbers(&from, 1, 0..5)?;
        let jobs = [
            spawn({
                let node = from.clone();
                move || call(&node, 1, FUNC).map(|_| ())
            })?,
            spawn({
                let node = from.clone();
                move || receive_number(&node, Some(1), None, SOON).map(|_| ())
            })?,
            spawn({
                let node = from.clone();
                move || node.send_sync(1, TAG, &5_u64.to_le_bytes(), SOON)
            })?,
        ];
        for job in &jobs {
            job.wait_asleep()?;
        }
        sees_down(&from, 1)?;
        sees_down(&to, 0)?;
        for job in jobs {
            check_eq!(job.join()?, Err(EHOSTDOWN));
        }
        check_eq!(from.send(1, TAG, &[], SOON), Err(EHOSTDOWN));
        check_eq!(call(&from, 1, FUNC), Err(EHOSTDOWN));
        gate.set_mute(false);
        gate.set_deaf(false);
        cluster.connected()?;
        check_eq!(from.peer(1).map(|p| p.snapshot().session), session);
        send_numbers(&from, 1, 6..7)?;
        expect_numbers(&to, 0, 7)?;
        // The call, too, and once.
        eventually(|| count.load(Relaxed) == 1)?;
        check_eq!(call(&from, 1, FUNC), Ok(2));
        Ok(())
    }

    // ---- Another incarnation.

    /// P11: a peer that was restarted ends the session: everything that waits for it is told so, by
    /// an error of its own, "down" comes before "up", and nothing of the old one gets into the new.
    #[test]
    fn restart_ends_the_session() -> Result {
        let mut plan = Plan::small(2);
        plan.ip = own_ip;
        plan.limits.max_long_handlers = 1;
        let mut cluster = Cluster::idle(plan)?;
        cluster.start(1)?;
        let node = cluster.node(1)?;
        let me = |incarnation| cluster.stranger(0, incarnation);
        let latch = Latch::new()?;
        let count = register_counter(&node, Class::Long, Some(&latch))?;
        let told: Arc<Mutex<KVec<(Event, u64)>>> =
            Arc::pin_init(new_mutex!(KVec::new(), "told"), GFP_KERNEL)?;
        let theirs = told.clone();
        node.subscribe(KBox::new(
            move |_: NodeId, event: Event, incarnation: u64| {
                let _ = theirs.lock().push((event, incarnation), GFP_KERNEL);
            },
            GFP_KERNEL,
        )?)?;
        let first = Client::join(&cluster, &me(7)?, 1)?;
        eventually(|| told.lock().len() == 1)?;
        // A message that nobody has received, a call that runs and one that is queued.
        first.say(&first.frame(Header::Message { tag: TAG, len: 0 }))?;
        first.say(&first.frame(Header::Call { func: FUNC, len: 0 }))?;
        first.say(&first.frame(Header::Call { func: FUNC, len: 0 }))?;
        latch.wait_held(1)?;
        waiting(&node, 1, 0)?;
        eventually(|| node.pool.counts().0 == 1)?;
        // What this node waits for.
        while node
            .send(0, TAG, &[0; SMALL_MESSAGE], Timeout::NoWait)
            .is_ok()
        {}
        let caller = spawn({
            let node = node.clone();
            move || call(&node, 0, FUNC).map(|_| ())
        })?;
        caller.wait_asleep()?;
        while node.rcall(0, FUNC, &[], Timeout::NoWait).is_ok() {}
        let jobs = [
            caller,
            spawn({
                let node = node.clone();
                move || receive_number(&node, Some(0), Some(TAG + 1), SOON).map(|_| ())
            })?,
            spawn({
                let node = node.clone();
                move || node.send(0, TAG, &[0; SMALL_MESSAGE], SOON)
            })?,
            spawn({
                let node = node.clone();
                move || node.send_sync(0, TAG, &[], SOON)
            })?,
            spawn({
                let node = node.clone();
                move || node.rcall(0, FUNC, &[], SOON)
            })?,
            spawn({
                let node = node.clone();
                let probe = move || node.probe(Some(0), Some(TAG + 1), SOON);
                move || probe().map(|_| ())
            })?,
        ];
        for job in &jobs {
            job.wait_asleep()?;
        }
        // It dies without a word.
        drop(first);
        sees_lost(&node, 0)?;
        check!(jobs.iter().all(|job| !job.is_done()));
        let second = Client::join(&cluster, &me(8)?, 1)?;
        for job in jobs {
            check_eq!(job.join()?, Err(ENETRESET));
        }
        let expected = [(Event::Up, 7), (Event::Down, 7), (Event::Up, 8)];
        eventually(|| told.lock().len() == 3)?;
        check_eq!(told.lock()[..], expected);
        // The message is gone, and so is the call that was queued; what runs runs to its end.
        waiting(&node, 0, 0)?;
        second.say(&second.frame(Header::Message { tag: TAG, len: 0 }))?;
        waiting(&node, 1, 0)?;
        latch.open();
        eventually(|| node.pool.counts().0 == 0)?;
        second.say(&second.frame(Header::Call { func: FUNC, len: 0 }))?;
        eventually(|| count.load(Relaxed) == 2)?;
        steadily(30, || count.load(Relaxed) == 2)
    }

    /// What a peer has sent before it stopped is there until it is back.
    #[test]
    fn messages_outlive_their_sender() -> Result {
        let mut cluster = Cluster::of(2)?;
        let (going, node) = cluster.pair()?;
        send_numbers(&going, 1, 0..3)?;
        waiting(&node, 3, 0)?;
        drop(going);
        cluster.stop(0);
        sees_down(&node, 0)?;
        check_eq!(receive_number(&node, Some(0), None, SOON), Ok(0));
        cluster.start(0)?;
        cluster.connected()?;
        waiting(&node, 0, 0)
    }

    // ---- The handshake.

    /// Where somebody stands who has received so much of the node.
    fn standing(node: &Node, me: &Identity, received: u64) -> Standing {
        Standing {
            with: node.identity.incarnation,
            received,
            granted: me.windows,
        }
    }

    /// A welcome that is lost begins nothing; nor does it end anything.
    #[test]
    fn welcome_is_lost() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let greet = |standing| {
            let client = Client::connect(cluster.ip(0), cluster.addr(1))?;
            client.say(&hello::hello(&me, 1, hello::Channel::Main, standing))?;
            check_eq!(client.answer(&me, 1)?, None);
            Ok(client)
        };
        let lost = greet(anew(&me))?;
        steadily(20, || epoch(&node, 0) == 0)?;
        check_eq!(node.send(0, TAG, &[], SOON), Err(EHOSTDOWN));
        drop(lost);
        let first = Client::join(&cluster, &me, 1)?;
        eventually(|| epoch(&node, 0) == 1)?;
        send_numbers(&node, 0, 0..2)?;
        // It has received none of them, and loses the next welcome, too.
        drop(first);
        sees_lost(&node, 0)?;
        drop(greet(standing(&node, &me, 0))?);
        let next = Client::join_at(&cluster, &me, 1, standing(&node, &me, 0))?;
        for seq in 1..=2 {
            check_eq!(next.hear_message()?, (seq, seq - 1));
        }
        Ok(())
    }

    /// A greeting that was under way for long does no harm to the session that has begun meanwhile: the
    /// model's traces `late-hello` and `dead-hello`.
    #[test]
    fn greeting_comes_late() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let earlier = cluster.stranger(0, 6)?;
        let connect = || Client::connect(cluster.ip(0), cluster.addr(1));
        let (late, dead, welcomed) = (connect()?, connect()?, connect()?);
        welcomed.say(&hello::hello(
            &earlier,
            1,
            hello::Channel::Main,
            anew(&earlier),
        ))?;
        check_eq!(welcomed.answer(&earlier, 1)?, None);
        let client = Client::join(&cluster, &me, 1)?;
        let message = Header::Message { tag: TAG, len: 0 };
        client.say(&client.frame(message))?;
        waiting(&node, 1, 0)?;
        // Said before the session began, by this incarnation.
        late.say(&hello::hello(&me, 1, hello::Channel::Main, anew(&me)))?;
        check_eq!(late.answer(&me, 1)?, Some(Refusal::Stale));
        // The one before it was welcomed in vain.
        welcomed.wait_closed()?;
        // While the connection is broken, nobody can tell that it is no more; but it is not heard again.
        drop(client);
        sees_lost(&node, 0)?;
        dead.say(&hello::hello(
            &earlier,
            1,
            hello::Channel::Main,
            anew(&earlier),
        ))?;
        check_eq!(dead.answer(&earlier, 1)?, None);
        let client = Client::join_at(&cluster, &me, 1, standing(&node, &me, 0))?;
        check_eq!(client.welcome_received(), 1);
        dead.wait_closed()?;
        client.say(&message.encode(Numbers { seq: 2, ack: 0 }))?;
        waiting(&node, 2, 0)?;
        check_eq!(node.peer(0).map(|p| p.snapshot().session), Some(1));
        Ok(())
    }

    /// The first header is enough to be heard. So of all connections that a peer was welcomed to, one
    /// at a time has memory for what follows a header.
    #[test]
    fn header_is_heard() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let mut clients = KVec::new();
        for _ in 0..4 {
            let client = Client::connect(cluster.ip(0), cluster.addr(1))?;
            client.say(&hello::hello(&me, 1, hello::Channel::Main, anew(&me)))?;
            check_eq!(client.answer(&me, 1)?, None);
            clients.push(client, GFP_KERNEL)?;
        }
        let long = Header::Message {
            tag: TAG,
            len: 1 << 20,
        };
        let first = long.encode(Numbers { seq: 1, ack: 0 });
        clients[2].say(&first[..HEADER_LEN - 1])?;
        steadily(20, || epoch(&node, 0) == 0)?;
        clients[2].say(&first[HEADER_LEN - 1..])?;
        eventually(|| epoch(&node, 0) == 1)?;
        for closed in [0, 1, 3] {
            clients[closed].wait_closed()?;
        }
        clients[2].say(&pattern(1 << 20, 1)?)?;
        waiting(&node, 1, 0)
    }

    /// What makes no sense is not heard: whoever was welcomed and says it first takes nobody's place.
    #[test]
    fn nonsense_is_not_heard() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let good = Client::join(&cluster, &me, 1)?;
        eventually(|| epoch(&node, 0) == 1)?;
        let message = Header::Message {
            tag: TAG,
            len: u32::MAX,
        };
        for nonsense in [
            message.encode(Numbers { seq: 1, ack: 0 }),
            PING.encode(Numbers { seq: 1, ack: 0 }),
            [0xa5; HEADER_LEN],
        ] {
            let client = Client::connect(cluster.ip(0), cluster.addr(1))?;
            client.say(&hello::hello(
                &me,
                1,
                hello::Channel::Main,
                standing(&node, &me, 0),
            ))?;
            check_eq!(client.answer(&me, 1)?, None);
            client.say(&nonsense)?;
            client.wait_closed()?;
            check_eq!(epoch(&node, 0), 1);
        }
        good.say(&good.frame(Header::Message { tag: TAG, len: 0 }))?;
        waiting(&node, 1, 0)
    }

    /// A frame that is held for want of memory, and comes again over the next connection, is charged
    /// for once.
    #[test]
    fn held_frame_comes_again() -> Result {
        const LEN: u32 = 4096;
        let mut plan = Plan::of(2);
        plan.ip = own_ip;
        plan.limits.max_message = LEN;
        // There is room for one, but not for another.
        plan.limits.queue_bytes = least_window(message_cost(LEN));
        let mut cluster = Cluster::idle(plan)?;
        cluster.start(1)?;
        let (node, me) = (cluster.node(1)?, cluster.stranger(0, 7)?);
        let starvation = Starvation::begin();
        let message = Header::Message { tag: TAG, len: LEN };
        let queued = || node.peer(0).map(|p| p.snapshot().queued);
        let mut standing_now = anew(&me);
        let mut before: Option<Client> = None;
        for run in 1..=3 {
            let client = Client::join_at(&cluster, &me, 1, standing_now)?;
            eventually(|| epoch(&node, 0) == run)?;
            if let Some(before) = before.take() {
                before.wait_closed()?;
            }
            client.say(&message.encode(Numbers { seq: 1, ack: 0 }))?;
            client.say(&pattern(LEN as usize, 1)?)?;
            eventually(|| queued() == Some(message_cost(LEN)))?;
            steadily(30, || epoch(&node, 0) == run)?;
            waiting(&node, 0, 0)?;
            standing_now = standing(&node, &me, 0);
            before = Some(client);
        }
        drop(starvation);
        waiting(&node, 1, 0)?;
        check_eq!(queued(), Some(message_cost(LEN)));
        check_eq!(epoch(&node, 0), 3);
        Ok(())
    }

    /// A peer that had a session with an earlier incarnation of this node begins anew.
    #[test]
    fn own_restart_is_understood() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let before = Standing {
            with: node.identity.incarnation ^ 1,
            received: 99,
            granted: [u64::MAX, u64::MAX],
        };
        let client = Client::join_at(&cluster, &me, 1, before)?;
        check_eq!(client.welcome_received(), 0);
        eventually(|| epoch(&node, 0) == 1)?;
        // What it had granted was for that one.
        check_eq!(node.send(0, TAG, &[], Timeout::NoWait), Err(EAGAIN));
        let lane = Lane::Messages;
        let limit = me.windows[0];
        client.say(&client.frame(Header::Credit { lane, limit }))?;
        send_numbers(&node, 0, 0..1)?;
        check_eq!(client.hear_message()?, (1, 0));
        Ok(())
    }

    /// The next connection goes on after what was received over the last.
    #[test]
    fn session_is_resumed() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let first = Client::join(&cluster, &me, 1)?;
        first.say(&first.frame(Header::Message { tag: TAG, len: 0 }))?;
        waiting(&node, 1, 0)?;
        send_numbers(&node, 0, 0..3)?;
        for received in [0, 0, 2, 3] {
            let next = Client::join_at(&cluster, &me, 1, standing(&node, &me, received))?;
            check_eq!(next.welcome_received(), 1);
            for seq in received + 1..=3 {
                check_eq!(next.hear_message()?, (seq, seq - 1));
            }
            let kept = || node.peer(0).map(|p| p.snapshot().kept[1]);
            eventually(|| kept() == Some(3 - received))?;
        }
        // A frame again, and the next one.
        let last = Client::join_at(&cluster, &me, 1, standing(&node, &me, 3))?;
        let message = Header::Message { tag: TAG, len: 0 };
        for seq in [1, 1, 2, 1, 2] {
            last.say(&message.encode(Numbers { seq, ack: 3 }))?;
        }
        waiting(&node, 2, 0)?;
        last.say(&message.encode(Numbers { seq: 3, ack: 3 }))?;
        waiting(&node, 3, 0)?;
        steadily(20, || node.endpoint.waiting().0 == 3)
    }

    /// Who cannot have received what he says is refused; the session goes on for who can.
    #[test]
    fn session_cannot_be_resumed() -> Result {
        let (cluster, node, me) = with_client(|_| {})?;
        let first = Client::join(&cluster, &me, 1)?;
        eventually(|| epoch(&node, 0) > 0)?;
        send_numbers(&node, 0, 0..3)?;
        // It has two of them.
        let message = Header::Message { tag: TAG, len: 0 };
        first.say(&message.encode(Numbers { seq: 1, ack: 2 }))?;
        waiting(&node, 1, 0)?;
        let other = Standing {
            with: 5,
            ..standing(&node, &me, 2)
        };
        let forgetful = anew(&me);
        for wrong in [4, u64::MAX, 1, 0].map(|n| standing(&node, &me, n)) {
            for wrong in [wrong, other, forgetful] {
                let client = Client::connect(cluster.ip(0), cluster.addr(1))?;
                client.say(&hello::hello(&me, 1, hello::Channel::Main, wrong))?;
                check_eq!(client.answer(&me, 1)?, Some(Refusal::Stale));
                client.wait_closed()?;
            }
        }
        check_eq!(epoch(&node, 0), 1);
        let next = Client::join_at(&cluster, &me, 1, standing(&node, &me, 2))?;
        check_eq!(next.hear_message()?, (3, 2));
        Ok(())
    }

    /// Numbers that make no sense end the connection, with a word about why.
    #[test]
    fn numbers_make_no_sense() -> Result {
        let message = Header::Message { tag: TAG, len: 0 };
        let cases = [
            // A gap.
            (message, 3, 0),
            (message, u64::MAX, 0),
            // An acknowledgement of what was never sent.
            (message, 2, 1),
            (PING, 0, 1),
            (PING, 0, u64::MAX),
            // No number, or one too many.
            (message, 0, 0),
            (PING, 1, 0),
        ];
        for (header, seq, ack) in cases {
            let (cluster, node, me) = with_client(|_| {})?;
            let client = Client::join(&cluster, &me, 1)?;
            client.say(&client.frame(message))?;
            waiting(&node, 1, 0)?;
            client.say(&header.encode(Numbers { seq, ack }))?;
            let _ = client.tell(&client.frame(message));
            client.wait_for(Header::Bye(Bye::Protocol))?;
            client.wait_closed()?;
            sees_lost(&node, 0)?;
            check_eq!(node.endpoint.waiting().0, 1);
        }
        Ok(())
    }

    /// The next frame, none of which has a payload, but for grants and signs of life.
    #[track_caller]
    fn next_frame(client: &Client) -> Result<Header> {
        loop {
            match client.hear_frame()? {
                Header::Credit { .. } | Header::Ping { answer: false } => {}
                frame => return Ok(frame),
            }
        }
    }
}
