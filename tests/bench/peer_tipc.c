// SPDX-License-Identifier: GPL-2.0
/*
 * TIPC, between two threads of this kernel: in one node ("tipc-local"), and
 * between two nodes, each a network namespace, over a pair of virtual Ethernet
 * devices ("tipc").
 *
 * What goes from one namespace to another of the same kernel TIPC puts straight
 * into the other's socket, past links and bearers ("tipc-netns" lets it): it
 * knows the other by a hash in what they discover each other with. Between
 * machines there is no such way, so for "tipc" the hash is made a wrong one.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/delay.h>
#include <linux/err.h>
#include <linux/fcntl.h>
#include <linux/if_ether.h>
#include <linux/net.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/sched/signal.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/tipc.h>
#include <linux/umh.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "bench.h"
#include "conn.h"

/* Longer messages go over a stream. */
#define MESSAGE_MAX	(TIPC_MAX_USER_MSG_SIZE - 16)
#define FIRST_ROOM	(TIPC_MAX_USER_MSG_SIZE + 16)
#define SERVICE		0x4b43434d
#define CONNECT_MS	10000

enum {
	LOCAL,		/* one node */
	BEARER,		/* two */
	NETNS,		/* two, with the way past the bearer */
	KINDS
};

/* A way to send: as single messages, or as a stream. */
enum {
	MESSAGES,
	STREAM,
	WAYS
};

static const int types[WAYS] = { SOCK_SEQPACKET, SOCK_STREAM };

/* What has been started of each kind. */
static struct kind {
	struct net *nets[2];		/* of the client and the server */
	struct net_device *devices[2];	/* whose hash is made wrong */
	struct socket *listeners[WAYS];
} kinds[KINDS];

/* A connection each way. */
struct tipc_line {
	struct bench_conn conns[WAYS];
};

/* ---- Namespaces. */

static int run_shell(const char *script, int kind)
{
	char tag[] = { '0' + kind, '\0' };
	char *argv[] = { "/bin/sh", "-c", (char *)script, "bench", tag, NULL };
	char *envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };
	int ret = call_usermodehelper(argv[0], argv, envp, UMH_WAIT_PROC);

	if (ret > 0) {
		pr_err("tipc: status %#x of: %s\n", ret, script);
		ret = -EIO;
	}
	return ret;
}

/*
 * Only user space can make namespaces. busybox has all that this takes. A packet
 * may be as long as over loopback.
 */
static const char make_namespaces[] =
	"set -e; at=/run/kccm-bench-$1; mkdir $at; touch $at/0 $at/1\n"
	"unshare --net=$at/0 ip link add tipc$1.0 type veth\n"
	"unshare --net=$at/1 sh -c \"\n"
	"	nsenter --net=$at/0 ip link set veth0 netns \\$\\$\n"
	"	ip link set veth0 name tipc$1.1\"\n"
	"nsenter --net=$at/0 ip link set tipc$1.0 mtu 65535 up\n"
	"nsenter --net=$at/1 ip link set tipc$1.1 mtu 65535 up\n";

/* The guest needs the program tipc, which is in iproute2. */
static const char make_nodes[] =
	"set -e; at=/run/kccm-bench-$1; for i in 0 1; do\n"
	"	nsenter --net=$at/$i tipc node set address 1.1.1$i\n"
	"	nsenter --net=$at/$i tipc bearer enable media eth device tipc$1.$i\n"
	"done\n";

static const char drop_namespaces[] =
	"at=/run/kccm-bench-$1; nsenter --net=$at/0 ip link del tipc$1.0\n"
	"umount $at/0; umount $at/1; rm -r $at\n";

/* The namespace with that device, with a reference. */
static struct net *net_of(const char *name)
{
	struct net *net, *found = NULL;

	rcu_read_lock();
	for_each_net_rcu(net) {
		if (dev_get_by_name_rcu(net, name)) {
			found = maybe_get_net(net);
			break;
		}
	}
	rcu_read_unlock();
	return found;
}

/* ---- The hash. */

/* A message of TIPC's: 16 words in network order. See net/tipc/msg.h. */
#define TIPC_WORDS		15
#define TIPC_USER(words)	(ntohl((words)[0]) >> 25 & 0xf)
#define TIPC_USER_DISCOVERY	13
#define TIPC_WORD_HASH		13

static rx_handler_result_t spoil_hash(struct sk_buff **pskb)
{
	struct sk_buff *skb = *pskb;
	size_t size = TIPC_WORDS * sizeof(__be32);
	__be32 *words;

	if (skb->protocol != htons(ETH_P_TIPC) || !pskb_may_pull(skb, size) ||
	    TIPC_USER((__be32 *)skb->data) != TIPC_USER_DISCOVERY)
		return RX_HANDLER_PASS;
	if (skb_ensure_writable(skb, size)) {
		kfree_skb(skb);
		return RX_HANDLER_CONSUMED;
	}
	words = (__be32 *)skb->data;
	words[TIPC_WORD_HASH] = ~words[TIPC_WORD_HASH];
	return RX_HANDLER_PASS;
}

static int hook_device(struct kind *kind, int index, const char *name)
{
	struct net_device *dev = dev_get_by_name(kind->nets[index], name);
	int ret;

	if (!dev)
		return -ENODEV;
	rtnl_lock();
	ret = netdev_rx_handler_register(dev, spoil_hash, NULL);
	rtnl_unlock();
	if (ret)
		dev_put(dev);
	else
		kind->devices[index] = dev;
	return ret;
}

static void unhook_device(struct net_device *dev)
{
	rtnl_lock();
	netdev_rx_handler_unregister(dev);
	rtnl_unlock();
	dev_put(dev);
}

/* ---- Sockets. */

static struct sockaddr_tipc service(int way)
{
	return (struct sockaddr_tipc){
		.family = AF_TIPC,
		.addrtype = TIPC_SERVICE_ADDR,
		.scope = TIPC_CLUSTER_SCOPE,
		.addr.name.name = { .type = SERVICE, .instance = way },
	};
}

static int listen_at(struct kind *kind, int way)
{
	struct sockaddr_tipc address = service(way);
	struct socket *sock;
	int ret;

	ret = sock_create_kern(kind->nets[1], AF_TIPC, types[way], 0, &sock);
	if (ret == -EAFNOSUPPORT)
		pr_err("tipc: load tipc.ko first\n");
	if (ret)
		return ret;
	kind->listeners[way] = sock;
	sock->sk->sk_rcvtimeo = HZ;
	ret = kernel_bind(sock, (struct sockaddr_unsized *)&address,
			  sizeof(address));
	return ret ?: kernel_listen(sock, 1);
}

/* A connection is made when it is accepted, not before. */
static int connect_once(const struct kind *kind, int way,
			struct bench_conn *conn)
{
	struct sockaddr_tipc address = service(way);
	struct sockaddr_unsized *to = (struct sockaddr_unsized *)&address;
	int ret;

	ret = sock_create_kern(kind->nets[0], AF_TIPC, types[way], 0,
			       &conn->client);
	if (ret)
		return ret;
	ret = kernel_connect(conn->client, to, sizeof(address), O_NONBLOCK);
	if (ret == -EINPROGRESS)
		ret = kernel_accept(kind->listeners[way], &conn->server, 0);
	if (!ret)
		ret = kernel_connect(conn->client, to, sizeof(address), 0);
	/* It is connected already. */
	if (ret == -EISCONN)
		ret = 0;
	if (!ret)
		return 0;
	sock_release(conn->client);
	conn->client = NULL;
	if (conn->server)
		sock_release(conn->server);
	conn->server = NULL;
	return ret;
}

/* The service is known at the other node soon after the link to it is up. */
static int connect_to(const struct kind *kind, int way, struct bench_conn *conn)
{
	unsigned int tries;
	int ret;

	for (tries = 0; tries < CONNECT_MS / 20; tries++) {
		ret = connect_once(kind, way, conn);
		if (!ret || fatal_signal_pending(current))
			return ret;
		msleep(20);
	}
	pr_err("tipc: the nodes do not find each other: %d\n", ret);
	return ret;
}

/* ---- Lines. */

static void tipc_close(struct bench_line *line)
{
	struct tipc_line *tl = line->private;
	int way;

	for (way = 0; way < WAYS; way++)
		bench_conn_end(&tl->conns[way]);
	kfree(tl);
}

static int tipc_open(struct bench_line *line)
{
	struct tipc_line *tl = kzalloc_obj(*tl);
	int way, ret = 0;

	if (!tl)
		return -ENOMEM;
	line->private = tl;
	for (way = 0; way < WAYS && !ret; way++) {
		ret = connect_to(&kinds[line->peer->id], way, &tl->conns[way]);
		if (!ret)
			ret = bench_conn_begin(&tl->conns[way], line,
					       FIRST_ROOM);
	}
	if (ret)
		tipc_close(line);
	return ret;
}

static struct bench_conn *conn_for(struct bench_line *line)
{
	struct tipc_line *tl = line->private;

	return &tl->conns[line->size > MESSAGE_MAX ? STREAM : MESSAGES];
}

static int tipc_call(struct bench_line *line)
{
	return bench_conn_call(conn_for(line));
}

static int tipc_send(struct bench_line *line)
{
	return bench_conn_send(conn_for(line));
}

/* ---- Start and stop. */

static void tipc_stop(const struct bench_peer *peer)
{
	struct kind *kind = &kinds[peer->id];
	int i;

	for (i = 0; i < WAYS; i++) {
		if (kind->listeners[i])
			sock_release(kind->listeners[i]);
	}
	for (i = 0; i < ARRAY_SIZE(kind->nets); i++) {
		if (kind->devices[i])
			unhook_device(kind->devices[i]);
		if (kind->nets[i])
			put_net(kind->nets[i]);
	}
	if (peer->id != LOCAL)
		run_shell(drop_namespaces, peer->id);
	*kind = (struct kind){};
}

static int make_pair(struct kind *kind, int id)
{
	char name[IFNAMSIZ];
	int i, ret;

	ret = run_shell(make_namespaces, id);
	for (i = 0; i < 2 && !ret; i++) {
		snprintf(name, sizeof(name), "tipc%d.%d", id, i);
		kind->nets[i] = net_of(name);
		if (!kind->nets[i])
			return -ENODEV;
		if (id == BEARER)
			ret = hook_device(kind, i, name);
	}
	if (ret)
		return ret;
	ret = run_shell(make_nodes, id);
	if (ret)
		pr_err("tipc: is the program tipc there, and tipc.ko loaded?\n");
	return ret;
}

static int tipc_start(const struct bench_peer *peer, unsigned int nodes)
{
	struct kind *kind = &kinds[peer->id];
	int way, ret = 0;

	if (peer->id == LOCAL) {
		kind->nets[0] = get_net(&init_net);
		kind->nets[1] = get_net(&init_net);
	} else {
		ret = make_pair(kind, peer->id);
	}
	for (way = 0; way < WAYS && !ret; way++)
		ret = listen_at(kind, way);
	if (ret)
		tipc_stop(peer);
	return ret;
}

#define TIPC_PEER(_name, _kind) {	\
	.name = _name,			\
	.id = _kind,			\
	.start = tipc_start,		\
	.stop = tipc_stop,		\
	.open = tipc_open,		\
	.close = tipc_close,		\
	.call = tipc_call,		\
	.send = tipc_send,		\
}

const struct bench_peer bench_tipc_peers[] = {
	TIPC_PEER("tipc", BEARER),
	TIPC_PEER("tipc-local", LOCAL),
	TIPC_PEER("tipc-netns", NETNS),
	{}
};
