// SPDX-License-Identifier: GPL-2.0

//! Sending and receiving messages.

use super::harness::*;
use super::sys;
use crate::config::NodeId;
use crate::conn::credit::message_cost;
use crate::conn::frame::FEW;
use crate::node::Node;
use crate::sendrecv::Info;
use crate::sys::wait::Timeout;
use kernel::prelude::*;
use kernel::sync::Arc;

const TAG: u32 = 7;

/// Waits until so many messages have been queued, and so many handed over.
#[track_caller]
fn counted(at: &Node, queued: u64, handed_over: u64) -> Result {
    let stats = &at.endpoint.stats;
    eventually(|| stats.queued.get() == queued && stats.handed_over.get() == handed_over)
}

/// A thread that receives a number.
fn number_receiver(
    at: &Arc<Node>,
    source: Option<NodeId>,
    tag: Option<u32>,
) -> Result<Job<Result<u64>>> {
    let (_, receivers) = at.endpoint.waiting();
    let theirs = at.clone();
    let job = spawn(move || receive_number(&theirs, source, tag, SOON))?;
    eventually(|| at.endpoint.waiting().1 > receivers)?;
    Ok(job)
}

#[track_caller]
fn send_number(from: &Node, to: &Node, tag: u32, number: u64) -> Result {
    send(from, to, tag, &number.to_le_bytes())
}

/// Receives what is there.
#[track_caller]
fn take_number(at: &Node, source: Option<NodeId>, tag: Option<u32>) -> Result<u64> {
    receive_number(at, source, tag, Timeout::NoWait).here()
}

/// Sends messages of the greatest length until there is no room for more.
fn fill(from: &Node, to: &Node) -> Result<usize> {
    // Too long for the stack.
    let mut message = pattern(SMALL_MESSAGE, 0)?;
    for count in 0.. {
        message[0] = count;
        match from.send(to.id(), TAG, &message, Timeout::NoWait) {
            Ok(()) => {}
            Err(e) if e == EAGAIN => return Ok(count.into()),
            Err(e) => return Err(e).here(),
        }
    }
    Err(E2BIG)
}

/// Does so again, when all has been received, which the sender may yet have to be told.
fn refill(from: &Node, to: &Node) -> Result {
    let mut count = 0;
    let mut result = Ok(());
    eventually(|| {
        match fill(from, to) {
            Ok(n) => count += n,
            Err(e) => result = Err(e),
        }
        count >= SMALL_ROOM || result.is_err()
    })?;
    result?;
    check_eq!(count, SMALL_ROOM);
    Ok(())
}

/// Receives one of the messages that [`fill`] has sent.
#[track_caller]
fn take_filled(at: &Node, from: &Node, number: usize) -> Result {
    let mut buf = pattern(SMALL_MESSAGE, 9)?;
    let info = receive(at, Some(from.id()), Some(TAG), &mut buf, SOON).here()?;
    check_eq!((info.len, usize::from(buf[0])), (SMALL_MESSAGE, number));
    Ok(())
}

/// Sends a message of each length, and compares.
fn round_trips(from: &Node, to: &Node, lengths: &[usize]) -> Result {
    for &len in lengths {
        let sent = pattern(len, 1)?;
        let mut received = pattern(len + 1, 2)?;
        from.send(to.id(), TAG, &sent, SOON).here()?;
        let info = receive(to, Some(from.id()), Some(TAG), &mut received, SOON).here()?;
        let (source, tag) = (from.id(), TAG);
        check_eq!(info, Info { source, tag, len });
        check!(received[..len] == sent[..]);
        // Nothing is written behind it.
        check!(received[len] == pattern(len + 1, 2)?[len]);
    }
    Ok(())
}

#[kunit_tests(kccm_sendrecv)]
mod tests {
    use super::*;

    // ---- Queued, or handed over.

    /// P5, P6: figure 2: the message is there, the receiver takes it and goes on without stopping.
    #[test]
    fn message_is_queued_before_its_receiver_asks() -> Result {
        let cluster = Cluster::of(2)?;
        let (sender, receiver) = cluster.pair()?;
        send(&sender, &receiver, TAG, b"early")?;
        waiting(&receiver, 1, 0)?;
        let mut buf = [0; 16];
        let sleeps = sys::sleeps();
        let info = receive(&receiver, Some(0), Some(TAG), &mut buf, SOON).here()?;
        check_eq!(sys::sleeps(), sleeps);
        let (source, tag, len) = (0, TAG, 5);
        check_eq!(info, Info { source, tag, len });
        check!(&buf[..5] == b"early");
        waiting(&receiver, 0, 0)?;
        counted(&receiver, 1, 0)
    }

    /// P6: of several that are queued, the one that arrived first.
    #[test]
    fn first_message_is_taken_first() -> Result {
        let cluster = Cluster::of(2)?;
        let (sender, receiver) = cluster.pair()?;
        for number in 0..5 {
            send_number(&sender, &receiver, TAG, number)?;
        }
        waiting(&receiver, 5, 0)?;
        for number in 0..5 {
            check_eq!(take_number(&receiver, None, Some(TAG))?, number);
        }
        counted(&receiver, 5, 0)
    }

    /// P5, P7: figure 3: the receiver sleeps, and is handed the message.
    #[test]
    fn message_is_handed_to_a_sleeping_receiver() -> Result {
        let cluster = Cluster::of(2)?;
        let (sender, receiver) = cluster.pair()?;
        let job = number_receiver(&receiver, Some(0), Some(TAG))?;
        job.wait_asleep()?;
        waiting(&receiver, 0, 1)?;
        send_number(&sender, &receiver, TAG, 1)?;
        check_eq!(job.join()?, Ok(1));
        waiting(&receiver, 0, 0)?;
        counted(&receiver, 0, 1)
    }

    /// P7: of several that wait, the one that began to wait first.
    #[test]
    fn first_receiver_is_served_first() -> Result {
        let cluster = Cluster::of(2)?;
        let (sender, receiver) = cluster.pair()?;
        let mut jobs = KVec::new();
        for _ in 0..4 {
            let job = number_receiver(&receiver, Some(0), Some(TAG))?;
            jobs.push(job, GFP_KERNEL)?;
        }
        for number in 0..4 {
            send_number(&sender, &receiver, TAG, number)?;
        }
        for (job, number) in jobs.into_iter().zip(0..) {
            check_eq!(job.join()?, Ok(number));
        }
        counted(&receiver, 0, 4)
    }

    /// P7: first come, first served among those that wait for it in different ways, too.
    #[test]
    fn first_matching_receiver_is_served_first() -> Result {
        let cluster = Cluster::of(3)?;
        let (receiver, sender, _) = cluster.trio()?;
        let from_other = number_receiver(&receiver, Some(2), None)?;
        let other_tag = number_receiver(&receiver, None, Some(TAG + 1))?;
        let anything = number_receiver(&receiver, None, None)?;
        let exact = number_receiver(&receiver, Some(1), Some(TAG))?;
        let from_it = number_receiver(&receiver, Some(1), None)?;
        let with_tag = number_receiver(&receiver, None, Some(TAG))?;
        for number in 0..4 {
            send_number(&sender, &receiver, TAG, number)?;
        }
        let jobs = [anything, exact, from_it, with_tag];
        for (job, number) in jobs.into_iter().zip(0..) {
            check_eq!(job.join()?, Ok(number));
        }
        check!(!from_other.is_done() && !other_tag.is_done());
        send_number(&sender, &receiver, TAG + 1, 4)?;
        check_eq!(other_tag.join()?, Ok(4));
        send_number(&*cluster.node(2)?, &receiver, TAG, 5)?;
        check_eq!(from_other.join()?, Ok(5));
        Ok(())
    }

    /// P6: by source, by tag, by both, by neither.
    #[test]
    fn wildcards() -> Result {
        let cluster = Cluster::of(3)?;
        let (at, one, two) = cluster.trio()?;
        let sent = [(&one, 1), (&two, 1), (&two, 2), (&one, 2), (&one, 1)];
        for (i, (from, tag)) in sent.into_iter().enumerate() {
            send_number(from, &at, tag, i as u64)?;
            // So that the order of arrival is known.
            waiting(&at, i + 1, 0)?;
        }
        let missing = |source, tag| receive_number(&at, source, tag, Timeout::NoWait).err();
        check_eq!(missing(Some(1), Some(3)), Some(EAGAIN));
        check_eq!(take_number(&at, None, Some(2))?, 2);
        check_eq!(take_number(&at, Some(1), Some(2))?, 3);
        check_eq!(missing(None, Some(2)), Some(EAGAIN));
        check_eq!(take_number(&at, Some(2), None)?, 1);
        check_eq!(missing(Some(2), None), Some(EAGAIN));
        check_eq!(take_number(&at, None, None)?, 0);
        check_eq!(take_number(&at, Some(1), Some(1))?, 4);
        check_eq!(missing(None, None), Some(EAGAIN));
        Ok(())
    }

    // ---- Lengths.

    /// P5
    #[test]
    fn short_and_long_messages() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        round_trips(&from, &to, &[0, 1, 8151, 8152, 8153, 65_536])?;
        round_trips(&to, &from, &[0, 1, 65_536])
    }

    /// P5: the longest message there is by default.
    #[test]
    fn longest_message() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        round_trips(&from, &to, &[16 << 20])
    }

    /// A message of any length comes with its memory, whether it was there or is waited for.
    #[test]
    fn received_with_its_memory() -> Result {
        let cluster = Cluster::of(2)?;
        let (zero, one) = cluster.pair()?;
        let none = one.recv_alloc(Some(0), Some(TAG), Timeout::NoWait);
        check_eq!(none.err(), Some(EAGAIN));
        for len in [0, 1, FEW, FEW + 1, 4096, 40_000, 300_000] {
            let bytes = pattern(len, 1)?;
            for waits in [false, true] {
                let taking = {
                    let receiver = one.clone();
                    move || receiver.recv_alloc(None, Some(TAG), SOON)
                };
                let (info, got) = if waits {
                    let job = spawn(taking)?;
                    waiting(&one, 0, 1)?;
                    zero.send(1, TAG, &bytes, SOON)?;
                    job.join()??
                } else {
                    zero.send(1, TAG, &bytes, SOON)?;
                    waiting(&one, 1, 0)?;
                    taking()?
                };
                check_eq!((info.source, info.tag, info.len), (0, TAG, len));
                check!(got[..] == bytes[..]);
            }
        }
        Ok(())
    }

    #[test]
    fn too_long_a_message() -> Result {
        let mut plan = Plan::small(3);
        plan.adjust = |id, limits| {
            if id == 1 {
                limits.max_message = 1000;
            }
        };
        let cluster = Cluster::new(plan)?;
        let (zero, one, two) = cluster.trio()?;
        let bytes = pattern(SMALL_MESSAGE + 1, 1)?;
        let sent = |from: &Node, to: &Node, len: usize| {
            let result = from.send(to.id(), TAG, &bytes[..len], SOON);
            result.err()
        };
        check_eq!(sent(&zero, &two, SMALL_MESSAGE), None);
        check_eq!(sent(&zero, &two, SMALL_MESSAGE + 1), Some(EMSGSIZE));
        // The smaller of the two nodes' bounds holds in both directions.
        for (from, to) in [(&zero, &one), (&one, &zero)] {
            check_eq!(sent(from, to, 1000), None);
            check_eq!(sent(from, to, 1001), Some(EMSGSIZE));
        }
        waiting(&two, 1, 0)?;
        waiting(&one, 1, 0)?;
        waiting(&zero, 1, 0)
    }

    /// A message that does not fit stays, and its length is told.
    #[test]
    fn too_small_a_buffer() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let told = Info {
            source: 0,
            tag: TAG,
            len: 100,
        };
        let sent = pattern(100, 1)?;
        let mut buf = [0; 100];
        from.send(1, TAG, &sent, SOON).here()?;
        waiting(&to, 1, 0)?;
        for timeout in [Timeout::NoWait, SOON] {
            let refused = to.recv(None, None, &mut buf[..99], timeout).err();
            check_eq!(refused, Some((EMSGSIZE, Some(told))));
        }
        check_eq!(receive(&to, None, None, &mut buf, SOON).here()?, told);
        check!(buf[..] == sent[..]);
        // It is the same for who waits: it is told, and the next who waits gets the message.
        let (one, two) = (to.clone(), to.clone());
        let small = spawn(move || one.recv(None, None, &mut [0; 99], SOON).err())?;
        waiting(&to, 0, 1)?;
        let large = spawn(move || receive(&two, None, None, &mut [0; 100], SOON))?;
        waiting(&to, 0, 2)?;
        from.send(1, TAG, &sent, SOON).here()?;
        check_eq!(small.join()?, Some((EMSGSIZE, Some(told))));
        check_eq!(large.join()?, Ok(told));
        waiting(&to, 0, 0)
    }

    // ---- Order.

    /// P6: ten thousand messages on one tag, whether queued or handed over.
    #[test]
    fn order_is_kept() -> Result {
        const COUNT: u64 = often(10_000);
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let sender = spawn(move || {
            (0..COUNT).try_for_each(|number| from.send(1, TAG, &number.to_le_bytes(), SOON))
        })?;
        for number in 0..COUNT {
            check_eq!(receive_number(&to, Some(0), Some(TAG), SOON), Ok(number));
        }
        sender.join()?.here()?;
        let stats = &to.endpoint.stats;
        eventually(|| stats.queued.get() + stats.handed_over.get() == COUNT)?;
        let peer = to.peer(0).ok_or(EINVAL)?;
        check_eq!(peer.stats.rx_messages.get(), COUNT);
        check_eq!(peer.stats.rx_bytes.get(), COUNT * 8);
        check_eq!(peer.snapshot().queued, 0);
        Ok(())
    }

    // ---- Waiting.

    #[test]
    fn nothing_comes() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let result = receive_number(&to, Some(0), None, Timeout::NoWait);
        check_eq!(result, Err(EAGAIN));
        let receive = || receive_number(&to, Some(0), None, Timeout::After(30));
        check_eq!(waits(30, receive)?, Err(ETIMEDOUT));
        // Who has given up does not get what comes later.
        waiting(&to, 0, 0)?;
        send_number(&from, &to, TAG, 1)?;
        waiting(&to, 1, 0)?;
        counted(&to, 1, 0)
    }

    #[test]
    fn no_such_node() -> Result {
        let cluster = Cluster::of(2)?;
        let node = cluster.node(0)?;
        for id in [0, 2, 255] {
            check_eq!(node.send(id, TAG, &[], SOON).err(), Some(EINVAL));
            let result = receive_number(&node, Some(id), None, Timeout::NoWait);
            check_eq!(result, Err(EINVAL));
            check_eq!(node.probe(Some(id), None, SOON).err(), Some(EINVAL));
        }
        Ok(())
    }

    #[test]
    fn killed_receiver() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let job = number_receiver(&to, None, Some(TAG))?;
        job.wait_asleep()?;
        job.kill();
        check_eq!(job.join()?, Err(EINTR));
        waiting(&to, 0, 0)?;
        // What it waited for is not lost.
        send_number(&from, &to, TAG, 1)?;
        check_eq!(receive_number(&to, None, Some(TAG), SOON), Ok(1));
        Ok(())
    }

    #[test]
    fn probing() -> Result {
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let told = Info {
            source: 0,
            tag: TAG,
            len: 8,
        };
        let result = to.probe(Some(0), None, Timeout::NoWait);
        check_eq!(result, Err(EAGAIN));
        let result = to.probe(None, None, Timeout::After(20));
        check_eq!(result, Err(ETIMEDOUT));
        // One who waits to know, and one who waits to receive.
        let (one, two) = (to.clone(), to.clone());
        let prober = spawn(move || one.probe(None, Some(TAG), SOON))?;
        waiting(&to, 0, 1)?;
        let receiver = spawn(move || receive_number(&two, None, Some(TAG), SOON))?;
        waiting(&to, 0, 2)?;
        send_number(&from, &to, TAG, 1)?;
        check_eq!(prober.join()?, Ok(told));
        check_eq!(receiver.join()?, Ok(1));
        // What has been probed is still there.
        send_number(&from, &to, TAG, 2)?;
        for timeout in [SOON, Timeout::NoWait] {
            check_eq!(to.probe(Some(0), Some(TAG), timeout), Ok(told));
        }
        check_eq!(to.probe(None, Some(TAG + 1), Timeout::NoWait), Err(EAGAIN));
        check_eq!(take_number(&to, None, None)?, 2);
        waiting(&to, 0, 0)
    }

    /// Who is told of a message finds it when he looks.
    #[test]
    fn probed_message_is_there() -> Result {
        const COUNT: u32 = 60;
        let cluster = Cluster::of(2)?;
        let (from, to) = cluster.pair()?;
        let theirs = to.clone();
        let prober = spawn(move || {
            (0..COUNT).try_for_each(|tag| {
                theirs.probe(None, Some(tag), SOON).here()?;
                theirs.probe(None, Some(tag), Timeout::NoWait).here()?;
                Ok(())
            })
        })?;
        for tag in 0..COUNT {
            waiting(&to, tag as usize, 1)?;
            send(&from, &to, tag, &[])?;
        }
        prober.join()?
    }

    // ---- What one peer may keep queued.

    /// P5: past the bound the sender gets `EAGAIN`, or waits; calls still pass, and other senders;
    /// nothing is dropped.
    #[test]
    fn full_queue() -> Result {
        let cluster = Cluster::new(Plan::small(3))?;
        let (from, to, other) = cluster.trio()?;
        register_echo(&from)?;
        register_echo(&to)?;
        check_eq!(fill(&from, &to)?, SMALL_ROOM);
        waiting(&to, SMALL_ROOM, 0)?;
        let queued = SMALL_ROOM as u64 * message_cost(SMALL_MESSAGE as u32);
        let snapshot = || to.peer(0).map(|peer| peer.snapshot().queued);
        check_eq!(snapshot(), Some(queued));
        let message = &[SMALL_ROOM as u8; SMALL_MESSAGE];
        let result = from.send(1, TAG, message, Timeout::After(20));
        check_eq!(result, Err(ETIMEDOUT));
        echo(&from, &to)?;
        echo(&to, &from)?;
        check_eq!(fill(&other, &to)?, SMALL_ROOM);
        check_eq!(fill(&to, &from)?, SMALL_ROOM);
        // Receipt lets the sender go on.
        let theirs = from.clone();
        let sender = spawn(move || theirs.send(1, TAG, message, SOON))?;
        sender.wait_asleep()?;
        for number in 0..=SMALL_ROOM {
            take_filled(&to, &from, number)?;
        }
        check_eq!(sender.join()?, Ok(()));
        waiting(&to, SMALL_ROOM, 0)?;
        check_eq!(snapshot(), Some(0));
        for number in 0..SMALL_ROOM {
            take_filled(&to, &other, number)?;
        }
        refill(&from, &to)
    }

    /// Those who wait for room are served in turn, so that a long message is not starved by short
    /// ones; who gives up lets those behind him go on.
    #[test]
    fn waiting_for_room_in_turn() -> Result {
        let cluster = Cluster::new(Plan::small(2))?;
        let (from, to) = cluster.pair()?;
        fill(&from, &to)?;
        let (one, two, three) = (from.clone(), from.clone(), from.clone());
        let long = spawn(move || one.send(1, TAG + 1, &[0; SMALL_MESSAGE], Timeout::Forever))?;
        long.wait_asleep()?;
        // There is room for a short one, but it is not its turn.
        check_eq!(from.send(1, TAG, &[], Timeout::NoWait), Err(EAGAIN));
        let short = spawn(move || two.send(1, TAG, &[], SOON))?;
        short.wait_asleep()?;
        long.kill();
        check_eq!(long.join()?, Err(EINTR));
        check_eq!(short.join()?, Ok(()));
        waiting(&to, SMALL_ROOM + 1, 0)?;
        // And when there is room, the first gets it.
        let long = spawn(move || three.send(1, TAG + 1, &[0; SMALL_MESSAGE], SOON))?;
        long.wait_asleep()?;
        for number in 0..SMALL_ROOM {
            take_filled(&to, &from, number)?;
        }
        check_eq!(long.join()?, Ok(()));
        waiting(&to, 2, 0)
    }

    /// What was queued before a connection broke still counts, and is still received.
    #[test]
    fn full_queue_outlives_its_connection() -> Result {
        let cluster = Cluster::new(Plan::small(2))?;
        let (from, to) = cluster.pair()?;
        fill(&from, &to)?;
        waiting(&to, SMALL_ROOM, 0)?;
        let session = epoch(&to, 0);
        from.disconnect(from.peer(1).ok_or(EINVAL)?, true);
        eventually(|| epoch(&to, 0) > session)?;
        cluster.connected()?;
        let message = &[SMALL_ROOM as u8; SMALL_MESSAGE];
        check_eq!(from.send(1, TAG, message, Timeout::NoWait), Err(EAGAIN));
        let theirs = from.clone();
        let sender = spawn(move || theirs.send(1, TAG, message, SOON))?;
        sender.wait_asleep()?;
        for number in 0..=SMALL_ROOM {
            take_filled(&to, &from, number)?;
        }
        check_eq!(sender.join()?, Ok(()));
        refill(&from, &to)
    }

    // ---- Peers that go.

    /// P7, P11: who waits on a peer that goes is told; who waits for any peer goes on waiting.
    #[test]
    fn peer_goes() -> Result {
        let mut cluster = Cluster::new(Plan::small(3))?;
        let (node, going, other) = cluster.trio()?;
        send_number(&going, &node, TAG, 1)?;
        waiting(&node, 1, 0)?;
        fill(&node, &going)?;
        let exact = number_receiver(&node, Some(1), Some(TAG + 1))?;
        let from_it = number_receiver(&node, Some(1), Some(TAG + 2))?;
        let from_other = number_receiver(&node, Some(2), None)?;
        let anything = number_receiver(&node, None, Some(TAG + 1))?;
        let theirs = node.clone();
        let sender = spawn(move || theirs.send(1, TAG, &[0; SMALL_MESSAGE], SOON))?;
        sender.wait_asleep()?;
        drop(going);
        cluster.stop(1);
        check_eq!(exact.join()?, Err(EHOSTDOWN));
        check_eq!(from_it.join()?, Err(EHOSTDOWN));
        check_eq!(sender.join()?, Err(EHOSTDOWN));
        check!(!anything.is_done() && !from_other.is_done());
        check_eq!(node.send(1, TAG, &[], SOON), Err(EHOSTDOWN));
        // What it sent before is still there; nothing else will come.
        check_eq!(receive_number(&node, Some(1), None, SOON), Ok(1));
        for timeout in [Timeout::NoWait, SOON] {
            let result = receive_number(&node, Some(1), None, timeout);
            check_eq!(result, Err(EHOSTDOWN));
            check_eq!(node.probe(Some(1), None, timeout), Err(EHOSTDOWN));
        }
        send_number(&other, &node, TAG, 2)?;
        send_number(&other, &node, TAG + 1, 3)?;
        check_eq!(from_other.join()?, Ok(2));
        check_eq!(anything.join()?, Ok(3));
        Ok(())
    }

    /// A node that stops tells its own receivers.
    #[test]
    fn own_node_stops() -> Result {
        let mut cluster = Cluster::new(Plan::gated(2)?)?;
        let node = cluster.node(0)?;
        let from_anyone = number_receiver(&node, None, Some(TAG))?;
        let from_it = number_receiver(&node, Some(1), Some(TAG))?;
        // While the good-bye is being sent, something comes in, so that the listener has a look.
        let (gate, other) = (cluster.gate(0)?, cluster.node(1)?);
        let at = cluster.addr(1).ip();
        let before = gate.sends(at);
        gate.set_toll(50);
        let theirs = gate.clone();
        let interrupter = spawn(move || {
            eventually(|| theirs.sends(at) > before)?;
            other.send(0, TAG + 1, &[], Timeout::NoWait)
        })?;
        cluster.stop(0);
        check_eq!(interrupter.join()?, Ok(()));
        check_eq!(from_anyone.join()?, Err(ESHUTDOWN));
        check_eq!(from_it.join()?, Err(ESHUTDOWN));
        let result = receive_number(&node, None, None, SOON);
        check_eq!(result, Err(ESHUTDOWN));
        check_eq!(node.send(1, TAG, &[], SOON), Err(EHOSTDOWN));
        Ok(())
    }
}
