// SPDX-License-Identifier: GPL-2.0

//! Greetings and frames that are not what they should be: each is turned down, and nobody else
//! notices.

use super::harness::*;
use super::net::{
    anew,
    Client,
    Trap, //
};
use crate::config::{
    ClusterName,
    NodeId, //
};
use crate::conn::credit::Lane;
use crate::conn::frame::tests::PING;
use crate::conn::frame::{
    Bye,
    Header,
    Numbers,
    Outcome,
    HEADER_LEN, //
};
use crate::conn::hello;
use crate::conn::hello::{
    Bytes,
    Identity,
    Refusal,
    Standing,
    GREETING_LEN, //
};
use crate::sys::clock;
use crate::sys::clock::Millis;
use kernel::prelude::*;

/// Where the fields of a greeting are.
const VERSION_AT: usize = 4;
const KIND_AT: usize = 6;
const INCARNATION_AT: usize = 16;
const CLUSTER_END: usize = 143;

/// How long a greeting may take, where that matters.
const HANDSHAKE_MS: Millis = 400 * SLOWNESS;

/// Three nodes at addresses of their own.
fn three() -> Result<Cluster> {
    let mut plan = Plan::of(3);
    plan.ip = own_ip;
    plan.limits.handshake_ms = HANDSHAKE_MS as u32;
    let cluster = Cluster::new(plan)?;
    for node in cluster.nodes() {
        register_echo(node)?;
    }
    Ok(cluster)
}

/// Checks that no connection has been lost, and that all work.
#[track_caller]
fn undisturbed(cluster: &Cluster) -> Result {
    for node in cluster.nodes() {
        for peer in node.peers() {
            check_eq!(peer.snapshot().epoch, 1);
        }
    }
    all_talk(cluster)
}

/// The second frame, with one byte changed.
fn broken(header: Header, at: usize, value: u8) -> [u8; HEADER_LEN] {
    let seq = if header.is_sequenced() { 2 } else { 0 };
    let mut bytes = header.encode(Numbers { seq, ack: 0 });
    bytes[at] = value;
    bytes
}

/// The second frame.
fn second(header: Header) -> [u8; HEADER_LEN] {
    header.encode(Numbers { seq: 2, ack: 0 })
}

/// The nodes 1 and 2, and somebody to play node 0.
fn without_node_0() -> Result<(Cluster, Identity)> {
    let mut plan = Plan::small(3);
    plan.ip = own_ip;
    let mut cluster = Cluster::idle(plan)?;
    for id in [1, 2] {
        cluster.start(id)?;
        register_echo(&*cluster.node(id)?)?;
    }
    let node = cluster.node(1)?;
    node.wait_up(Some(2), SOON).here()?;
    cluster.node(2)?.wait_up(Some(1), SOON).here()?;
    let me = cluster.stranger(0, 7)?;
    Ok((cluster, me))
}

/// Checks that the connection of nodes 1 and 2 has not been lost, and works.
#[track_caller]
fn one_and_two_go_on(cluster: &Cluster) -> Result {
    let (one, two) = (cluster.node(1)?, cluster.node(2)?);
    echo(&one, &two)?;
    echo(&two, &one)?;
    check_eq!((epoch(&one, 2), epoch(&two, 1)), (1, 1));
    Ok(())
}

#[kunit_tests(kccm_refusal)]
mod tests {
    use super::*;

    // ---- Greetings.

    /// Every reason is told to who is refused.
    #[test]
    fn greeting_is_refused() -> Result {
        let cluster = three()?;
        let zero = cluster.stranger(0, 7)?;
        let two = cluster.stranger(2, 7)?;
        let nine = cluster.stranger(9, 7)?;
        let mut other = zero;
        other.cluster = ClusterName::new(b"other").ok_or(EINVAL)?;
        let hello =
            |me: &Identity, to| hello::hello(me, to, hello::Channel::Main, Standing::default());
        let change = |at: usize, value| {
            let mut bytes = hello(&zero, 1);
            bytes[at] = value;
            bytes
        };
        let mut no_incarnation = hello(&zero, 1);
        no_incarnation[INCARNATION_AT..][..8].fill(0);
        // From where, to whom, what, and the answer.
        let cases: [(NodeId, NodeId, Bytes, Refusal); 12] = [
            (0, 1, hello(&other, 1), Refusal::Cluster),
            (0, 1, hello(&zero, 2), Refusal::UnknownId),
            (0, 1, hello(&zero, 9), Refusal::UnknownId),
            (8, 1, hello(&nine, 1), Refusal::UnknownId),
            (2, 2, hello(&two, 2), Refusal::UnknownId),
            (2, 1, hello(&two, 1), Refusal::Direction),
            (0, 1, hello(&zero, 1), Refusal::Duplicate),
            (2, 1, hello(&zero, 1), Refusal::Address),
            (0, 1, change(VERSION_AT, 1), Refusal::Version),
            (0, 1, change(KIND_AT, 2), Refusal::Malformed),
            (0, 1, change(CLUSTER_END, 1), Refusal::Malformed),
            (0, 1, no_incarnation, Refusal::Malformed),
        ];
        for (i, (from, to, bytes, expected)) in cases.into_iter().enumerate() {
            let client = Client::connect(own_ip(from), cluster.addr(to))?;
            client.say(&bytes)?;
            // A refusal says no more than why.
            let answer = client.answer(&zero, to)?;
            check_eq!((i, answer), (i, Some(expected)));
            client.wait_closed()?;
        }
        undisturbed(&cluster)
    }

    /// What is no greeting at all gets no answer, however long it is.
    #[test]
    fn garbage() -> Result {
        let cluster = three()?;
        for len in [GREETING_LEN, GREETING_LEN + 1, 100_000] {
            let client = Client::connect(own_ip(0), cluster.addr(1))?;
            // It may be closed before all has been said.
            let _ = client.say(&pattern(len, 1)?);
            check_eq!(client.hear::<1>(), Err(ECONNRESET));
        }
        undisturbed(&cluster)
    }

    /// Who does not greet in time is hung up on: with nothing said, with half a greeting, with one
    /// that comes by and by.
    #[test]
    fn greeting_takes_too_long() -> Result {
        let cluster = three()?;
        let me = cluster.stranger(0, 7)?;
        let hello = hello::hello(&me, 1, hello::Channel::Main, anew(&me));
        let begin = clock::now();
        let mut clients = KVec::new();
        for said in [0, 1, GREETING_LEN - 1] {
            let client = Client::connect(own_ip(0), cluster.addr(1))?;
            client.say(&hello[..said])?;
            clients.push(client, GFP_KERNEL)?;
        }
        let slow = Client::connect(own_ip(0), cluster.addr(1))?;
        for byte in &hello[..GREETING_LEN - 1] {
            pause(10 * SLOWNESS);
            if slow.tell(&[*byte]).is_err() {
                break;
            }
        }
        clients.push(slow, GFP_KERNEL)?;
        for client in &clients {
            client.wait_closed()?;
        }
        let elapsed = clock::now() - begin;
        check!(elapsed >= HANDSHAKE_MS - 20);
        // Not only when the slow one has come to its end.
        check!(elapsed < 10 * SLOWNESS * GREETING_LEN as Millis);
        undisturbed(&cluster)
    }

    /// A greeting that comes in pieces is as good as any, if it comes in time.
    #[test]
    fn greeting_in_pieces() -> Result {
        let (cluster, me) = without_node_0()?;
        let client = Client::connect(own_ip(0), cluster.addr(1))?;
        for byte in hello::hello(&me, 1, hello::Channel::Main, anew(&me)) {
            client.say(&[byte])?;
        }
        check_eq!(client.answer(&me, 1)?, None);
        client.say(&client.frame(PING))?;
        let node = cluster.node(1)?;
        node.wait_up(Some(0), SOON).here()?;
        check_eq!(node.peer(0).map(|p| p.snapshot().incarnation), Some(7));
        Ok(())
    }

    /// A crowd of callers that say nothing: it is bounded, and takes no peer's place.
    #[test]
    fn crowd_without_greeting() -> Result {
        const STRANGERS: usize = 64;
        const OF_A_PEER: usize = 8;
        let mut plan = Plan::of(3);
        plan.ip = own_ip;
        let cluster = Cluster::new(plan)?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        let mut crowd = KVec::new();
        // (From where, how many are listened to.) Whatever node 0 is thought to want is all its own.
        let callers = [
            (own_ip(7), STRANGERS),
            (own_ip(8), 0),
            (cluster.ip(0), OF_A_PEER),
        ];
        for (ip, _) in callers {
            for _ in 0..STRANGERS + 20 {
                crowd.push(Client::connect(ip, cluster.addr(2))?, GFP_KERNEL)?;
            }
        }
        for ((_, kept), clients) in callers.iter().zip(crowd.chunks(STRANGERS + 20)) {
            eventually(|| clients.iter().filter(|client| !client.is_closed()).count() == *kept)?;
        }
        undisturbed(&cluster)?;
        // While they are still there, a peer that has none of them connects.
        let (one, two) = (cluster.node(1)?, cluster.node(2)?);
        two.disconnect(two.peer(1).ok_or(EINVAL)?, false);
        eventually(|| epoch(&one, 2) == 2 && epoch(&two, 1) == 2)?;
        check_eq!(
            crowd.iter().filter(|client| !client.is_closed()).count(),
            STRANGERS + OF_A_PEER
        );
        // The places of those that have gone are others'.
        crowd.truncate(20);
        let mut elsewhere = cluster.stranger(0, 7)?;
        elsewhere.cluster = ClusterName::new(b"other").ok_or(EINVAL)?;
        let hello = hello::hello(&elsewhere, 2, hello::Channel::Main, anew(&elsewhere));
        eventually(|| {
            let answer = Client::connect(own_ip(8), cluster.addr(2)).and_then(|client| {
                client.tell(&hello)?;
                client.hear::<GREETING_LEN>()
            });
            answer.is_ok()
        })
    }

    /// P10: what answers at a peer's address may not be that peer: the node says why not, and tries
    /// again until it is.
    #[test]
    fn answer_is_not_the_peer_s() -> Result {
        let mut cluster = Cluster::idle(Plan::of(3))?;
        let trap = Trap::set(cluster.addr(1))?;
        for id in [0, 2] {
            cluster.start(id)?;
            register_echo(&*cluster.node(id)?)?;
        }
        let (node, two) = (cluster.node(0)?, cluster.node(2)?);
        node.wait_up(Some(2), SOON).here()?;
        two.wait_up(Some(0), SOON).here()?;
        let one = cluster.stranger(1, 7)?;
        let nine = cluster.stranger(9, 7)?;
        let mut other = one;
        other.cluster = ClusterName::new(b"other").ok_or(EINVAL)?;
        let mut earlier = node.identity;
        earlier.incarnation ^= 1;
        let me = &node.identity;
        let standing = Standing::default();
        let welcome = |from: &Identity, to: &Identity| hello::welcome(from, to, standing);
        let mut version = welcome(&one, me);
        version[VERSION_AT] = 1;
        let garbage: Bytes = *pattern(GREETING_LEN, 1)?.first_chunk().ok_or(EIO)?;
        let cases: [(Bytes, Refusal); 7] = [
            (garbage, Refusal::Malformed),
            (version, Refusal::Version),
            (welcome(&other, me), Refusal::Cluster),
            (welcome(&nine, me), Refusal::UnknownId),
            (welcome(&one, &two.identity), Refusal::UnknownId),
            (welcome(&one, &earlier), Refusal::UnknownId),
            (hello::refuse(&one, Refusal::Address), Refusal::Address),
        ];
        let peer = node.peer(1).ok_or(EINVAL)?;
        let seen = |error: Error, refusal: Option<Refusal>| {
            eventually(|| {
                let seen = peer.snapshot();
                (seen.last_error, seen.last_refusal) == (Some(error), refusal)
            })
        };
        for (i, (answer, refusal)) in cases.into_iter().enumerate() {
            let caught = trap.catch()?;
            check_eq!((i, caught.hear::<GREETING_LEN>().err()), (i, None));
            caught.say(&answer)?;
            caught.wait_closed()?;
            seen(refusal.errno(), Some(refusal))?;
            check!(peer.stats.attempts.get() > i as u64);
        }
        // Half an answer, and the end.
        let caught = trap.catch()?;
        caught.hear::<GREETING_LEN>().here()?;
        caught.say(&garbage[..70])?;
        drop(caught);
        seen(ECONNRESET, None)?;
        check_eq!((epoch(&node, 2), epoch(&two, 0)), (1, 1));
        drop(trap);
        cluster.start(1)?;
        cluster.connected()
    }

    /// A peer's good-bye can be lost with its connection; then it says the same when it is connected
    /// to again, and is down at once.
    #[test]
    fn good_bye_is_lost() -> Result {
        let mut cluster = Cluster::idle(Plan::of(2))?;
        let trap = Trap::set(cluster.addr(1))?;
        cluster.start(0)?;
        let node = cluster.node(0)?;
        let peer = node.peer(1).ok_or(EINVAL)?;
        for (run, refusal) in (7..).zip([Refusal::AdminDown, Refusal::Stopping]) {
            let one = cluster.stranger(1, run)?;
            let caught = trap.catch()?;
            caught.hear::<GREETING_LEN>().here()?;
            caught.say(&hello::welcome(&one, &node.identity, Standing::default()))?;
            eventually(|| peer.is_up())?;
            drop(caught);
            let caught = trap.catch()?;
            caught.hear::<GREETING_LEN>().here()?;
            check!(peer.is_up());
            caught.say(&hello::refuse(&one, refusal))?;
            sees_down(&node, 1)?;
            check_eq!(peer.snapshot().last_refusal, Some(refusal));
        }
        drop(trap);
        cluster.start(1)?;
        cluster.connected()
    }

    /// P10: what answers at a peer's address may stop in the middle of it: the node does not wait
    /// for the rest for ever, and tries again.
    #[test]
    fn answer_does_not_come() -> Result {
        let mut plan = Plan::of(2);
        plan.limits.handshake_ms = HANDSHAKE_MS as u32;
        let mut cluster = Cluster::idle(plan)?;
        let trap = Trap::set(cluster.addr(1))?;
        cluster.start(0)?;
        let node = cluster.node(0)?;
        let peer = node.peer(1).ok_or(EINVAL)?;
        for half in [0, GREETING_LEN / 2] {
            let caught = trap.catch()?;
            caught.say(&hello::refuse(&node.identity, Refusal::Address)[..half])?;
            caught.wait_closed()?;
            eventually(|| {
                let seen = peer.snapshot();
                (seen.last_error, seen.last_refusal) == (Some(ETIMEDOUT), None)
            })?;
        }
        drop(trap);
        cluster.start(1)?;
        cluster.connected()
    }

    // ---- Frames.

    /// A frame that makes no sense ends its connection, with a word about why.
    #[test]
    fn frame_is_malformed() -> Result {
        let (cluster, _) = without_node_0()?;
        let node = cluster.node(1)?;
        let message = |len| Header::Message { tag: 1, len };
        let call = |reply_max, len| Header::CallSync {
            id: 1,
            func: ECHO,
            reply_max,
            len,
        };
        let reply = Header::Reply {
            id: 1,
            outcome: Outcome::Ran,
            status: 0,
            needed: 0,
            len: 0,
        };
        let credit = Header::Credit {
            lane: Lane::Messages,
            limit: 0,
        };
        let (kind, flags, reserved, tag) = (4, 5, 6, 32);
        let frames = [
            broken(PING, kind, 0),
            broken(PING, kind, 8),
            broken(PING, kind, 255),
            broken(PING, 0, 1),
            broken(message(0), flags, 1),
            broken(message(0), reserved, 1),
            broken(reply, flags, 99),
            broken(credit, tag, 2),
            broken(Header::Bye(Bye::Stopping), tag, 99),
            second(message(SMALL_MESSAGE as u32 + 1)),
            second(message(u32::MAX)),
            second(call(0, (1 << 20) + 1)),
            second(call((1 << 20) + 1, 0)),
        ];
        for (session, frame) in (1..).zip(frames) {
            let me = cluster.stranger(0, 7 + session)?;
            let client = Client::join(&cluster, &me, 1)?;
            eventually(|| epoch(&node, 0) == session)?;
            // What comes before it is served, what comes after it is not.
            client.say(&client.frame(message(0)))?;
            client.say(&frame)?;
            let _ = client.tell(&client.frame(message(0)));
            client.wait_for(Header::Bye(Bye::Protocol))?;
            client.wait_closed()?;
            sees_lost(&node, 0)?;
            let seen = node.peer(0).map(|p| p.snapshot().last_error);
            check_eq!(seen, Some(Some(EPROTO)));
            // What an earlier session has left is gone.
            waiting(&node, 1, 0)?;
        }
        one_and_two_go_on(&cluster)
    }

    /// What breaks the rules of credit ends the connection, too.
    #[test]
    fn credit_is_overdrawn() -> Result {
        let (cluster, me) = without_node_0()?;
        let node = cluster.node(1)?;
        let message = pattern(HEADER_LEN + SMALL_MESSAGE, 1)?;
        let header = Header::Message {
            tag: 1,
            len: SMALL_MESSAGE as u32,
        };
        let client = Client::join(&cluster, &me, 1)?;
        for _ in 0..SMALL_ROOM {
            client.say(&client.frame(header))?;
            client.say(&message[HEADER_LEN..])?;
        }
        waiting(&node, SMALL_ROOM, 0)?;
        check!(node.peer(0).is_some_and(|p| p.is_up()));
        client.say(&client.frame(header))?;
        let _ = client.tell(&message[HEADER_LEN..]);
        client.wait_for(Header::Bye(Bye::Protocol))?;
        client.wait_closed()?;
        sees_lost(&node, 0)?;
        waiting(&node, SMALL_ROOM, 0)?;
        // A grant of more than there can be room for.
        let limit = me.windows[0] + 1;
        for (run, (limit, good)) in
            (8..).zip([(limit - 1, true), (limit, false), (u64::MAX, false)])
        {
            let me = cluster.stranger(0, run)?;
            let client = Client::join(&cluster, &me, 1)?;
            eventually(|| epoch(&node, 0) > 0)?;
            let lane = Lane::Messages;
            client.say(&client.frame(Header::Credit { lane, limit }))?;
            // If it has not been closed by then.
            let _ = client.tell(&client.frame(PING));
            if good {
                steadily(30, || epoch(&node, 0) > 0)?;
            } else {
                client.wait_for(Header::Bye(Bye::Protocol))?;
                client.wait_closed()?;
            }
            drop(client);
            sees_lost(&node, 0)?;
        }
        one_and_two_go_on(&cluster)
    }

    /// Half a frame, and then the end, or silence.
    #[test]
    fn half_a_frame() -> Result {
        let (cluster, _) = without_node_0()?;
        let node = cluster.node(1)?;
        let header = Header::Message { tag: 1, len: 100 };
        let mut frame = pattern(HEADER_LEN + 100, 1)?;
        frame[..HEADER_LEN].copy_from_slice(&header.encode(Numbers { seq: 1, ack: 0 }));
        for (run, len) in (7..).zip([1, HEADER_LEN - 1, HEADER_LEN, HEADER_LEN + 99]) {
            let me = cluster.stranger(0, run)?;
            let client = Client::join(&cluster, &me, 1)?;
            eventually(|| epoch(&node, 0) > 0)?;
            client.say(&frame[..len])?;
            drop(client);
            sees_lost(&node, 0)?;
        }
        waiting(&node, 0, 0)?;
        one_and_two_go_on(&cluster)
    }

    /// A reply that nobody waits for does no harm.
    #[test]
    fn reply_to_nothing() -> Result {
        let (cluster, me) = without_node_0()?;
        let node = cluster.node(1)?;
        let client = Client::join(&cluster, &me, 1)?;
        node.wait_up(Some(0), SOON).here()?;
        let reply = |id| Header::Reply {
            id,
            outcome: Outcome::Ran,
            status: 0,
            needed: 0,
            len: 0,
        };
        for id in [0, 1, u64::MAX] {
            client.say(&client.frame(reply(id)))?;
        }
        // Nor can it take the place of another's.
        let latch = Latch::new()?;
        let barrier = latch.barrier();
        register(
            &*cluster.node(2)?,
            1,
            crate::rcall::handlers::Class::Long,
            move |_| {
                barrier.pass();
                5
            },
        )?;
        let theirs = node.clone();
        let caller = spawn(move || call(&theirs, 2, 1))?;
        latch.wait_held(1)?;
        for id in 0..20 {
            client.say(&client.frame(reply(id)))?;
        }
        let call = Header::CallSync {
            id: 99,
            func: ECHO,
            reply_max: 0,
            len: 0,
        };
        client.say(&client.frame(call))?;
        client.wait_for(reply(99))?;
        check!(!caller.is_done());
        latch.open();
        check_eq!(caller.join()?, Ok(5));
        Ok(())
    }

    /// A peer that takes its leave.
    #[test]
    fn good_bye() -> Result {
        let (cluster, _) = without_node_0()?;
        let node = cluster.node(1)?;
        for (run, (why, error)) in (7..).zip([
            (Bye::Stopping, ESHUTDOWN),
            (Bye::AdminDown, EHOSTDOWN),
            (Bye::Reconnect, ECONNRESET),
            (Bye::Replaced, ECONNRESET),
            (Bye::Protocol, EPROTO),
        ]) {
            let me = cluster.stranger(0, run)?;
            let client = Client::join(&cluster, &me, 1)?;
            eventually(|| epoch(&node, 0) > 0)?;
            client.say(&client.frame(Header::Bye(why)))?;
            client.wait_closed()?;
            sees_lost(&node, 0)?;
            // Only who stops or keeps this node away is down long before `dead_ms`, right after the loss.
            let is_up = || node.peer(0).is_some_and(|p| p.is_up());
            if [Bye::Stopping, Bye::AdminDown].contains(&why) {
                eventually(|| !is_up())?;
            } else {
                check!(is_up());
            }
            let seen = node.peer(0).ok_or(EINVAL)?.snapshot();
            let refusal = (why == Bye::AdminDown).then_some(Refusal::AdminDown);
            check_eq!((seen.last_error, seen.last_refusal), (Some(error), refusal));
        }
        one_and_two_go_on(&cluster)
    }
}
