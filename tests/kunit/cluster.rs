// SPDX-License-Identifier: GPL-2.0

//! Clusters of several nodes in one kernel, over the loopback device.

use crate::config::{
    Config,
    Limits,
    Member,
    NodeId, //
};
use crate::node::Running;
use crate::sys::net::Net;
use crate::sys::wait::Timeout;
use kernel::prelude::*;

/// How long anything may take that is not expected to fail.
const SOON: Timeout = Timeout::After(20_000);

/// The nodes 0 to `count` of a cluster, on ports from `port` on.
struct Cluster(KVec<Running>);

impl Cluster {
    fn new(count: u16, port: u16, limits: Limits) -> Result<Self> {
        let mut nodes = KVec::new();
        for id in 0..count {
            nodes.push(Self::start(id, count, port, limits)?, GFP_KERNEL)?;
        }
        Ok(Self(nodes))
    }

    fn start(id: NodeId, count: u16, port: u16, limits: Limits) -> Result<Running> {
        let mut members = KVec::new();
        for id in 0..count {
            let addr = core::net::SocketAddr::from(([127, 0, 0, 1], port + id));
            members.push(Member { id, addr }, GFP_KERNEL)?;
        }
        let config = Config {
            me: members[usize::from(id)],
            members,
            cluster: crate::config::ClusterName::new(b"kunit").ok_or(EINVAL)?,
            limits,
        };
        Running::start(config, Net::current())
    }

    fn connected(&self) -> Result {
        for running in &self.0 {
            running.node().wait_up(None, SOON)?;
        }
        Ok(())
    }
}

#[kunit_tests(kccm_cluster)]
mod tests {
    use super::*;

    /// P10: every pair of nodes shares one connection, the lower id connecting.
    #[test]
    fn fully_connected_2() -> Result {
        let cluster = Cluster::new(2, 7800, Limits::DEFAULT)?;
        cluster.connected()
    }
}
