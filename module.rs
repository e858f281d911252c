// SPDX-License-Identifier: GPL-2.0

//! The module itself: one node, made from the parameters, and gone with the module.

use crate::api;
use crate::config;
use crate::conn::ao::Keyrings;
use crate::conn::ring::Ring;
use crate::conn::tcp::Tcp;
use crate::module_parameters;
use crate::node;
use crate::sys;
use crate::sysfs;
use kernel::prelude::*;
use kernel::sync::Arc;

/// The module: one node, made from the parameters.
///
/// The order of the fields is the order in which they go: first nobody finds the node any more.
pub(crate) struct Module {
    _published: api::Published,
    _sysfs: sysfs::Tree,
    _running: node::Running,
}

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        let _noio = sys::noio::Scope::enter();
        let limits = config::Limits {
            max_message: *module_parameters::max_message.value_ref(),
            max_rcall: *module_parameters::max_rcall.value_ref(),
            queue_bytes: *module_parameters::queue_bytes.value_ref(),
            rcall_bytes: *module_parameters::rcall_bytes.value_ref(),
            kept_bytes: *module_parameters::kept_bytes.value_ref(),
            kept_frames: *module_parameters::kept_frames.value_ref(),
            unsent_bytes: *module_parameters::unsent_bytes.value_ref(),
            max_long_handlers: *module_parameters::max_long_handlers.value_ref(),
            listeners: *module_parameters::listeners.value_ref(),
            dead_ms: *module_parameters::dead_ms.value_ref(),
            handshake_ms: *module_parameters::handshake_ms.value_ref(),
            backoff_min_ms: *module_parameters::backoff_min_ms.value_ref(),
            backoff_max_ms: *module_parameters::backoff_max_ms.value_ref(),
            short_warn_us: *module_parameters::short_warn_us.value_ref(),
        };
        let config = config::Config::new(
            *module_parameters::node_id.value_ref(),
            api::param_cluster(),
            *module_parameters::port.value_ref(),
            api::param_peers(),
            limits,
        )
        .map_err(|invalid| {
            pr_err!("{}\n", invalid);
            EINVAL
        })?;
        let ring = keys(config.me.id)?;
        let tcp = Tcp::new(sys::net::Net::current(), ring)?;
        let running = node::Running::start_on(config, KBox::new(tcp, GFP_KERNEL)?)?;
        let node = running.node();
        let tree = sysfs::Tree::new(node)?;
        pr_info!(
            "node {} of cluster {}: incarnation {:016x}, {} peers, at {}\n",
            node.id(),
            node.identity.cluster,
            node.identity.incarnation,
            node.peers().len(),
            config::Addr(node.me().addr)
        );
        Ok(Self {
            _published: api::Published::new(node),
            _sysfs: tree,
            _running: running,
        })
    }
}

/// The keys that the parameter `key` names, if it does.
fn keys(node: config::NodeId) -> Result<Option<Arc<Ring>>> {
    let name = config::KeyName::new(api::param_key()).map_err(|invalid| {
        pr_err!("{}\n", invalid);
        EINVAL
    })?;
    let Some(name) = name else {
        return Ok(None);
    };
    match Ring::new(node, name, KBox::new(Keyrings, GFP_KERNEL)?) {
        Ok(ring) => Ok(Some(ring)),
        Err(trouble) => {
            pr_err!("{}\n", trouble.of(&name));
            Err(trouble.error())
        }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        pr_info!("stopping\n");
    }
}
