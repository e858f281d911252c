// SPDX-License-Identifier: GPL-2.0

//! The smallest KCCM module in Rust.
//!
//! Loaded on two nodes, the one that is loaded last calls the other, whose handler sends it a message
//! and replies. `kccm_hello_c.c` is the same in C; either greets the other.

#[path = "../include/kccm.rs"]
mod kccm;

use kccm::{
    Call,
    Class,
    Registration,
    Timeout, //
};
use kernel::prelude::*;

/// The function that is called, and the tag of the message that it sends.
const HELLO: u32 = 0x6865_6c6c;

module! {
    type: Hello,
    name: "kccm_hello_rust",
    authors: ["The KCCM maintainers"],
    description: "KCCM sample: greets another node, in Rust",
    license: "GPL",
    params: {
        peer: i32 {
            default: -1,
            description: "Node to greet (default: the lowest other one)",
        },
        wait_ms: u32 {
            default: 10000,
            description: "How long to wait for it to come up, milliseconds (10000)",
        },
    },
}

/// While it is loaded, other nodes can greet this one.
struct Hello {
    _handler: Registration,
}

impl kernel::Module for Hello {
    fn init(module: &'static ThisModule) -> Result<Self> {
        // Long, because it may have to wait for room to send.
        let handler = Registration::new(module, HELLO, Class::Long, c"hello", 64, greeted)?;
        let wait = Timeout::Millis(*module_parameters::wait_ms.value_ref());
        let peer = peer()?;
        kccm::wait_up(peer, wait)
            .and_then(|()| greet(peer, wait))
            .inspect_err(|e| pr_err!("node {} was not greeted: {:?}\n", peer, e))?;
        Ok(Self { _handler: handler })
    }
}

/// The node that is to be greeted.
fn peer() -> Result<u32> {
    if let Ok(peer) = u32::try_from(*module_parameters::peer.value_ref()) {
        return Ok(peer);
    }
    let me = kccm::node_id()?;
    let members = kccm::members()?;
    members.iter().copied().find(|&id| id != me).ok_or(ENODEV)
}

/// Greets a node: calls it, and receives the message that it sends.
fn greet(peer: u32, wait: Timeout) -> Result {
    let mut buf = [0; 64];
    let reply = match kccm::rcall_sync(peer, HELLO, b"hello, here is Rust", &mut buf, wait) {
        Err(kccm::CallError::Other(e)) if e == EOPNOTSUPP => {
            pr_info!(
                "node {} cannot be greeted yet: load this module there\n",
                peer
            );
            return Ok(());
        }
        reply => reply?,
    };
    pr_info!("node {} replied: {}\n", peer, text(&buf[..reply.len]));
    let info = kccm::recv(peer, HELLO, &mut buf, wait)?;
    pr_info!("node {} sent: {}\n", peer, text(&buf[..info.len]));
    Ok(())
}

/// Another node greets this one.
fn greeted(call: &mut Call<'_>) -> Result<u32> {
    pr_info!("node {} called: {}\n", call.source(), text(call.args()));
    kccm::send(
        call.source(),
        HELLO,
        b"a message in Rust",
        Timeout::Millis(1000),
    )?;
    call.reply(b"hello yourself");
    Ok(0)
}

fn text(bytes: &[u8]) -> &str {
    core::str::from_utf8(bytes).unwrap_or("?")
}
