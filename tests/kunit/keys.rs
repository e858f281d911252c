// SPDX-License-Identifier: GPL-2.0

//! Who may join: nodes with the same key, with another, with none, and keys that change.

use super::cluster::fully_connected;
use super::harness::*;
use super::net::Below;
use super::recovery::Stream;
use super::sys;
use crate::config::{
    KeyName,
    NodeId, //
};
use crate::conn::ao::{
    Ids,
    Source, //
};
use crate::conn::ring::Ring;
use crate::conn::tcp::Tcp;
use crate::conn::transport::{
    Guard,
    Transport, //
};
use crate::node::Node;
use crate::sys::keys;
use crate::sys::keys::Secret;
use crate::sys::net::Net;
use crate::sys::sock::Dropped;
use core::net::SocketAddr;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};
use kernel::sync::{
    new_mutex,
    Arc,
    Mutex, //
};

/// A keyring of a node's own. A secret is one byte, many times.
#[pin_data]
pub(super) struct Chest {
    #[pin]
    keys: Mutex<KVec<(u8, u8)>>,
}

impl Chest {
    fn new(keys: &[(u8, u8)]) -> Result<Arc<Self>> {
        let mut all = KVec::new();
        all.extend_from_slice(keys, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self { keys <- new_mutex!(all, "Chest::keys") }),
            GFP_KERNEL,
        )
    }

    /// The keys of a node that has this keyring.
    pub(super) fn ring(self: &Arc<Self>, node: NodeId) -> Result<Arc<Ring>> {
        let name = KeyName::new("test").ok().flatten().ok_or(EINVAL)?;
        let source = KBox::new(self.clone(), GFP_KERNEL)?;
        Ring::new(node, name, source).map_err(|trouble| trouble.error())
    }

    /// Has just these keys in it.
    fn hold(&self, keys: &[(u8, u8)]) -> Result {
        let mut all = self.keys.lock();
        all.clear();
        Ok(all.extend_from_slice(keys, GFP_KERNEL)?)
    }
}

impl Source for Arc<Chest> {
    fn find(&self, description: &CStr) -> Result<Option<Secret>> {
        for &(id, byte) in &*self.keys.lock() {
            let ours = CString::try_from_fmt(fmt!("test:{id}"))?;
            if ours.to_bytes() == description.to_bytes() {
                return Secret::new(&[byte; 32]).map(Some);
            }
        }
        Ok(None)
    }
}

const ONE: (u8, u8) = (1, b'a');
const TWO: (u8, u8) = (2, b'b');

/// Nodes with these keys each; `&[]` is a node that knows of no keys.
fn plan(keys: &[&[(u8, u8)]]) -> Result<Plan> {
    let mut chests = KVec::new();
    for keys in keys {
        let chest = match keys {
            [] => None,
            keys => Some(Chest::new(keys)?),
        };
        chests.push(chest, GFP_KERNEL)?;
    }
    let mut plan = Plan::of(keys.len() as NodeId);
    plan.limits.handshake_ms = HANDSHAKE_MS;
    plan.below = Below::Keyed(chests);
    Ok(plan)
}

/// Long enough for whoever gets an answer, short enough to see many attempts.
const HANDSHAKE_MS: u32 = 500 * SLOWNESS as u32;

/// A cluster of such nodes, all started, those that listen before those that connect to them: what
/// has no signature is not heard, and so nobody hears that nobody listens.
#[track_caller]
fn started(keys: &[&[(u8, u8)]]) -> Result<Cluster> {
    let mut cluster = Cluster::idle(plan(keys)?)?;
    for id in (0..keys.len()).rev() {
        cluster.start(id as NodeId).here()?;
    }
    Ok(cluster)
}

/// The same, all connected.
#[track_caller]
fn connected(keys: &[&[(u8, u8)]]) -> Result<Cluster> {
    let cluster = started(keys)?;
    cluster.connected()?;
    Ok(cluster)
}

fn guard(node: &Node) -> Result<&dyn Guard> {
    node.transport.guard().ok_or(EINVAL)
}

/// Changes a node's keyring, and has the node look.
#[track_caller]
fn rekey(cluster: &Cluster, id: NodeId, keys: &[(u8, u8)]) -> Result {
    change(cluster, id, keys)?;
    guard(&*cluster.node(id)?)?.rekey().here()
}

fn change(cluster: &Cluster, id: NodeId, keys: &[(u8, u8)]) -> Result {
    cluster.chest(id)?.hold(keys)
}

/// The key with which a node signs what it sends to a peer.
fn key_of(node: &Node, peer: NodeId) -> Option<u8> {
    node.peer(peer)?.conn()?.key()
}

fn held(node: &Node, keys: &[u8]) -> Result {
    let expected: Ids = keys.iter().copied().collect();
    eventually(|| guard(node).is_ok_and(|guard| guard.held() == expected))
}

fn reconnects(node: &Node, peer: NodeId) -> u64 {
    node.peer(peer).map_or(0, |p| p.stats.reconnects.get())
}

/// Checks that a node is not let in: the others connect, and it does not.
fn kept_out(cluster: &Cluster, out: NodeId) -> Result {
    let stranger = cluster.node(out)?;
    for node in cluster.nodes().filter(|node| node.id() != out) {
        for peer in node.peers().iter().filter(|peer| peer.id != out) {
            node.wait_up(Some(peer.id), SOON).here()?;
        }
    }
    // Both sides try more than once.
    for (node, peer) in [(cluster.node(0)?, out), (stranger.clone(), 2)] {
        let peer = node.peer(peer).ok_or(EINVAL)?;
        let before = peer.stats.attempts.get();
        eventually(|| peer.stats.attempts.get() >= before + 2)?;
    }
    for node in cluster.nodes().filter(|node| node.id() != out) {
        check!(!node.peer(out).ok_or(EINVAL)?.is_up());
        // It has not even got as far as a greeting.
        check_eq!(node.peer(out).ok_or(EINVAL)?.snapshot().incarnation, 0);
    }
    check!(stranger.peers().iter().all(|peer| !peer.is_up()));
    Ok(())
}

/// Waits until a node has dropped segments for that reason.
fn dropped(node: &Node, reason: fn(&Dropped) -> u64) -> Result {
    eventually(|| guard(node).is_ok_and(|guard| reason(&guard.dropped()) > 0))
}

/// Waits until a node says why it does not get through to a peer.
fn remarks(cluster: &Cluster, from: NodeId, to: NodeId, text: &str) -> Result {
    let node = cluster.node(from)?;
    let addr = cluster.addr(to);
    eventually(|| {
        let remark = guard(&node).ok().and_then(|guard| guard.remark(&addr));
        remark.is_some_and(|remark| remark.contains(text))
    })
}

#[kunit_tests(kccm_keys)]
mod tests {
    use super::*;

    // ---- Who has the key.

    #[test]
    fn same_key() -> Result {
        fully_connected(plan(&[&[ONE], &[ONE], &[ONE], &[ONE]])?)
    }

    #[test]
    fn same_key_over_ipv6() -> Result {
        let mut plan = plan(&[&[ONE], &[ONE], &[ONE]])?;
        plan.ip = shared_ip6;
        fully_connected(plan)
    }

    #[test]
    fn eight_keys() -> Result {
        let keys = [1, 2, 3, 4, 5, 6, 7, 255].map(|id| (id, id));
        let cluster = connected(&[&keys, &keys])?;
        let (one, other) = cluster.pair()?;
        // The highest number is the one to use.
        eventually(|| key_of(&one, 1) == Some(255) && key_of(&other, 0) == Some(255))?;
        check_eq!(reconnects(&one, 1), 0);
        Ok(())
    }

    /// The same number, but another secret.
    #[test]
    fn another_secret() -> Result {
        let mut cluster = started(&[&[ONE], &[(1, b'x')], &[ONE]])?;
        kept_out(&cluster, 1)?;
        // Who connects learns no more than that there is no answer, who listens learns why.
        dropped(&*cluster.node(1)?, |d| d.mismatched)?;
        dropped(&*cluster.node(2)?, |d| d.mismatched)?;
        remarks(&cluster, 0, 1, "no answer")?;
        remarks(&cluster, 1, 2, "no answer")?;
        // It is nothing else that keeps it out.
        cluster.stop(1);
        change(&cluster, 1, &[ONE])?;
        cluster.start(1)?;
        cluster.connected()?;
        let node = cluster.node(0)?;
        check!(guard(&node)?.remark(&cluster.addr(1)).is_none());
        Ok(())
    }

    /// The same secret, but under another number.
    #[test]
    fn another_number() -> Result {
        let cluster = started(&[&[ONE], &[(2, ONE.1)], &[ONE]])?;
        kept_out(&cluster, 1)?;
        dropped(&*cluster.node(1)?, |d| d.unknown)?;
        dropped(&*cluster.node(2)?, |d| d.unknown)?;
        // Whoever has the right one as well is let in, after some attempts.
        rekey(&cluster, 1, &[ONE, (2, ONE.1)])?;
        cluster.connected()
    }

    #[test]
    fn no_key() -> Result {
        let cluster = started(&[&[ONE], &[], &[ONE]])?;
        kept_out(&cluster, 1)?;
        dropped(&*cluster.node(2)?, |d| d.not_signed)?;
        remarks(&cluster, 0, 1, "no answer")
    }

    /// One that has a key does not talk to one that has none, whoever connects.
    #[test]
    fn key_among_strangers() -> Result {
        let cluster = started(&[&[], &[ONE], &[]])?;
        kept_out(&cluster, 1)?;
        dropped(&*cluster.node(1)?, |d| d.not_signed)
    }

    /// Somebody who is no node does not get through to the port.
    #[test]
    fn stranger_at_the_port() -> Result {
        let cluster = started(&[&[ONE]])?;
        let node = cluster.node(0)?;
        let from = SocketAddr::new(cluster.ip(0), 0);
        let wrong = Chest::new(&[(1, b'x')])?.ring(9)?;
        for ring in [None, Some(wrong)] {
            let tcp = Tcp::new(Net::current(), ring)?;
            let link = tcp.connect(&from, &cluster.addr(0)).here()?;
            steadily(500, || link.status() == Err(EINPROGRESS))?;
            link.close(false);
        }
        dropped(&node, |d| d.not_signed)?;
        dropped(&node, |d| d.mismatched)?;
        // One that has the key does.
        let right = Chest::new(&[ONE])?.ring(9)?;
        let tcp = Tcp::new(Net::current(), Some(right))?;
        let link = tcp.connect(&from, &cluster.addr(0)).here()?;
        eventually(|| link.status().is_ok())?;
        check_eq!(link.key(), Some(1));
        link.close(false);
        Ok(())
    }

    // ---- Keys that are not there.

    /// Nothing is left of a node that has no keys to start with.
    #[test]
    fn missing_keys() -> Result {
        let sockets = sys::tcp_sockets();
        let mut cluster = Cluster::idle(plan(&[&[ONE], &[ONE]])?)?;
        change(&cluster, 0, &[])?;
        check_eq!(cluster.start(0).err(), Some(ENOKEY));
        check_eq!(sys::tcp_sockets(), sockets);
        Ok(())
    }

    /// The kernel's own keyrings are asked, and have none of that name.
    #[test]
    fn keyrings_are_searched() -> Result {
        check!(keys::find(c"kccm:no-such-key:1").here()?.is_none());
        Ok(())
    }

    /// When the keys that are found are no good, those that there are stay.
    #[test]
    fn keys_stay_when_others_are_no_good() -> Result {
        let cluster = connected(&[&[ONE], &[ONE]])?;
        let (one, other) = cluster.pair()?;
        let tries = |keys: &[(u8, u8)]| {
            change(&cluster, 0, keys)?;
            Ok::<_, Error>(guard(&one)?.rekey().err())
        };
        check_eq!(tries(&[])?, Some(ENOKEY));
        check_eq!(tries(&[(1, b'x')])?, Some(EKEYREJECTED));
        check_eq!(
            tries(&[1, 2, 3, 4, 5, 6, 7, 8, 9].map(|id| (id, b'a')))?,
            Some(E2BIG)
        );
        held(&one, &[1])?;
        check_eq!(key_of(&one, 1), Some(1));
        // A secret that a connection still needs is not mistaken for another.
        check_eq!(tries(&[TWO])?, None);
        held(&one, &[1, 2])?;
        check_eq!(tries(&[(1, b'x'), TWO])?, Some(EBUSY));
        check_eq!(tries(&[ONE, TWO])?, None);
        check_eq!(reconnects(&one, 1) + reconnects(&other, 0), 0);
        Ok(())
    }

    // ---- Keys that change.

    /// Whatever the order in which nodes learn the new key and forget the old one, nobody is
    /// disconnected, and in the end the old one is gone.
    #[test]
    fn rotation_in_any_order() -> Result {
        for order in [
            [0, 0, 1, 1],
            [0, 1, 0, 1],
            [0, 1, 1, 0],
            [1, 0, 0, 1],
            [1, 0, 1, 0],
            [1, 1, 0, 0],
        ] {
            let cluster = connected(&[&[ONE], &[ONE]])?;
            let (one, other) = cluster.pair()?;
            let streams = [Stream::new(&one, &other)?, Stream::new(&other, &one)?];
            let mut changed = [false; 2];
            for id in order {
                let keys: &[_] = if changed[id] { &[TWO] } else { &[ONE, TWO] };
                changed[id] = true;
                rekey(&cluster, id as NodeId, keys)?;
                for stream in &streams {
                    stream.flows()?;
                }
            }
            for (node, peer) in [(&one, 1), (&other, 0)] {
                held(node, &[2])?;
                check_eq!(key_of(node, peer), Some(2));
                check_eq!(reconnects(node, peer), 0);
            }
            for stream in streams {
                stream.flows()?;
                stream.end()?;
            }
        }
        Ok(())
    }

    /// A key that only one side has is not used. A connection keeps one that was taken away until the
    /// other side can do without.
    #[test]
    fn rotation_waits_for_the_other_side() -> Result {
        let cluster = connected(&[&[ONE], &[ONE]])?;
        let (one, other) = cluster.pair()?;
        let streams = [Stream::new(&one, &other)?, Stream::new(&other, &one)?];
        let one_is_used = || {
            streams.iter().try_for_each(Stream::flows)?;
            // Longer than between two looks.
            steadily(400, || {
                key_of(&one, 1) == Some(1) && key_of(&other, 0) == Some(1)
            })
        };
        rekey(&cluster, 0, &[ONE, TWO])?;
        one_is_used()?;
        rekey(&cluster, 0, &[TWO])?;
        one_is_used()?;
        held(&one, &[1, 2])?;
        rekey(&cluster, 1, &[ONE, TWO])?;
        held(&one, &[2])?;
        held(&other, &[1, 2])?;
        check_eq!(key_of(&other, 0), Some(2));
        for stream in streams {
            stream.end()?;
        }
        check_eq!(reconnects(&one, 1), 0);
        Ok(())
    }

    /// Connections that break in the middle of a rotation are made again.
    #[test]
    fn reconnect_during_rotation() -> Result {
        let mut cluster = connected(&[&[ONE], &[ONE]])?;
        let (one, other) = cluster.pair()?;
        rekey(&cluster, 0, &[ONE, TWO])?;
        one.disconnect(one.peer(1).ok_or(EINVAL)?, true);
        eventually(|| reconnects(&one, 1) == 1)?;
        cluster.connected()?;
        check_eq!(key_of(&one, 1), Some(1));
        // The rotation goes on with the connection that there is now.
        rekey(&cluster, 1, &[ONE, TWO])?;
        let streams = [Stream::new(&one, &other)?, Stream::new(&other, &one)?];
        eventually(|| key_of(&one, 1) == Some(2) && key_of(&other, 0) == Some(2))?;
        for stream in streams {
            stream.end()?;
        }
        // Back to the old one, as far as that goes: who connects prefers what it used last.
        drop(other);
        cluster.stop(1);
        change(&cluster, 1, &[ONE])?;
        cluster.start(1)?;
        cluster.connected()?;
        check_eq!(key_of(&one, 1), Some(1));
        // The other side comes back with the new one only.
        cluster.stop(1);
        change(&cluster, 1, &[TWO])?;
        cluster.start(1)?;
        cluster.connected()?;
        eventually(|| key_of(&one, 1) == Some(2))
    }

    /// Keys that change all the time, and connections that break all the time.
    #[test]
    fn rekey_while_connections_break() -> Result {
        let sockets = sys::tcp_sockets();
        let cluster = connected(&[&[ONE], &[ONE], &[ONE]])?;
        let stop = Arc::new(Atomic::new(false), GFP_KERNEL)?;
        let mut jobs = KVec::new();
        for id in 0..3 {
            let (node, until) = (cluster.node(id)?, stop.clone());
            let chest = cluster.chest(id)?;
            let job = spawn(move || {
                for round in 0_usize.. {
                    if until.load(Relaxed) {
                        break;
                    }
                    let keys: [&[_]; 2] = [&[ONE, TWO], &[ONE]];
                    chest.hold(keys[round % 2])?;
                    guard(&node)?.rekey()?;
                    pause(1);
                }
                Ok::<_, Error>(())
            })?;
            jobs.push(job, GFP_KERNEL)?;
        }
        let node = cluster.node(1)?;
        for round in 0..often(100) {
            let peer = [0, 2][round as usize % 2];
            node.disconnect(node.peer(peer).ok_or(EINVAL)?, true);
            pause(10);
        }
        stop.store(true, Relaxed);
        for job in jobs {
            job.join()?.here()?;
        }
        for id in 0..3 {
            rekey(&cluster, id, &[ONE])?;
        }
        cluster.connected()?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        all_talk(&cluster)?;
        drop((node, cluster));
        eventually(|| sys::tcp_sockets() == sockets)
    }
}
