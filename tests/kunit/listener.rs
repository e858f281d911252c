// SPDX-License-Identifier: GPL-2.0

//! The listener: one thread that serves all peers, woken for what there is to do, and fair.

use super::harness::*;
use crate::config::NodeId;
use crate::rcall::handlers::Class;
use crate::sys::thread;
use kernel::prelude::*;

/// Has every other node call a short handler of node 0. Returns in which thread each call ran.
fn threads_of_short_handlers(cluster: &Cluster) -> Result<KVec<usize>> {
    const FUNC: u32 = 1;
    let node = cluster.node(0)?;
    let theirs = node.clone();
    register(&node, FUNC, Class::Short, move |call| {
        if !theirs.queues.is_listener() {
            return -1;
        }
        let id = thread::current_id().to_le_bytes();
        if let Some(reply) = call.reply.as_mut().and_then(|r| r.first_chunk_mut()) {
            *reply = id;
        }
        call.reply_len = id.len();
        0
    })?;
    let mut threads = KVec::new();
    for caller in cluster.nodes().skip(1) {
        let mut reply = [0; 8];
        let called = caller.rcall_sync(0, FUNC, &[], &mut reply, SOON);
        check_eq!(called.map(|done| done.len).ok(), Some(8));
        threads.push(usize::from_le_bytes(reply), GFP_KERNEL)?;
    }
    // Not while the node holds the handler, and the handler the node.
    node.unregister(FUNC)?;
    Ok(threads)
}

#[kunit_tests(kccm_listener)]
mod tests {
    use super::*;

    /// P4: one listener thread serves every peer.
    #[test]
    fn one_listener_for_all_peers() -> Result {
        let threads = threads_of_short_handlers(&Cluster::of(4)?)?;
        check!(threads.iter().all(|&thread| thread == threads[0]));
        Ok(())
    }

    /// P4: with several listeners, each peer has one, always the same.
    #[test]
    fn each_peer_has_one_listener() -> Result {
        let mut plan = Plan::of(7);
        plan.limits.listeners = 3;
        let cluster = Cluster::new(plan)?;
        let threads = threads_of_short_handlers(&cluster)?;
        for (i, one) in threads.iter().enumerate() {
            for (j, other) in threads.iter().enumerate() {
                check_eq!(one == other, i % 3 == j % 3);
            }
        }
        let again = threads_of_short_handlers(&cluster)?;
        check!(again[..] == threads[..]);
        Ok(())
    }

    /// P4: who has nothing to say is not looked at, whatever others say.
    #[test]
    fn idle_connections_are_left_alone() -> Result {
        const BUSY: NodeId = 1;
        const IDLE: NodeId = 2;
        let mut plan = Plan::gated(3)?;
        // No signs of life meanwhile.
        plan.limits.dead_ms = 600_000;
        let cluster = Cluster::new(plan)?;
        let (node, busy, _) = cluster.trio()?;
        register_echo(&node)?;
        let gate = cluster.gate(0)?;
        let before = [BUSY, IDLE].map(|id| gate.looks(own_ip(id)));
        for _ in 0..100 {
            echo(&busy, &node)?;
        }
        let after = [BUSY, IDLE].map(|id| gate.looks(own_ip(id)));
        check!(after[0] >= before[0] + 100);
        // The last of the handshake, and what follows it, may have come late.
        check!(after[1] <= before[1] + 20);
        Ok(())
    }

    /// P4: a peer from which there is always more to read does not starve the others.
    #[test]
    fn flood_starves_nobody() -> Result {
        let cluster = Cluster::new(Plan::gated(3)?)?;
        let (node, flooding, other) = cluster.trio()?;
        for node in cluster.nodes() {
            register_echo(node)?;
        }
        let gate = cluster.gate(0)?;
        let session = epoch(&node, 1);
        gate.set_torrent(Some(own_ip(1)));
        // It is noticed with the next that comes from there.
        send(&flooding, &node, 1, b"flood")?;
        let looks = || gate.looks(own_ip(1));
        let before = looks();
        eventually(|| looks() > before + 100)?;
        for _ in 0..20 {
            echo(&other, &node)?;
            echo(&node, &other)?;
        }
        let still = looks();
        eventually(|| looks() > still)?;
        gate.set_torrent(None);
        // What the flood held up is still there.
        expect(&node, &flooding, 1, b"flood")?;
        echo(&flooding, &node)?;
        check_eq!(epoch(&node, 1), session);
        Ok(())
    }
}
