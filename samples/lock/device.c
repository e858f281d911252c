// SPDX-License-Identifier: GPL-2.0
/*
 * How the lock and the counter are used.
 *
 * /dev/kccm_lock: a lock is held by an open file, until it is unlocked there
 * or closed, however that comes about. In a shell:
 *
 *	exec 3<>/dev/kccm_lock
 *	echo lock >&3		# waits; with O_NONBLOCK, EAGAIN until it is there
 *	cat <&3			# "held 17.2", with the stamp; "waiting" or "free"
 *	echo unlock >&3
 *	exec 3>&-
 *
 * A file that waits for the lock can be polled: it is readable when it has it.
 *
 * /sys/kernel/debug/kccm_lock/control: "run N" increments the counter N times,
 * in the background, "stop" ends that. status, beside it, tells all there is
 * to know, in lines of name=value.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/cleanup.h>
#include <linux/debugfs.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "lock.h"

static uint quorum;
module_param(quorum, uint, 0444);
MODULE_PARM_DESC(quorum,
		 "How many nodes must take part (0: a majority). With fewer, nodes that the network separates both go on, and what they count is lost");

/* ---- /dev/kccm_lock ---- */

static int lock_dev_open(struct inode *inode, struct file *file)
{
	struct claim *claim = kzalloc_obj(*claim);

	if (!claim)
		return -ENOMEM;
	INIT_LIST_HEAD(&claim->list);
	file->private_data = claim;
	return 0;
}

static int lock_dev_release(struct inode *inode, struct file *file)
{
	dlock_release(file->private_data);
	kfree(file->private_data);
	return 0;
}

static int lock_dev_lock(struct file *file)
{
	struct claim *claim = file->private_data;
	int ret;

	dlock_claim(claim);
	if (file->f_flags & O_NONBLOCK)
		return READ_ONCE(claim->granted) ? 0 : -EAGAIN;
	ret = wait_event_killable(dlock.granted, READ_ONCE(claim->granted));
	if (ret)
		dlock_release(claim);
	return ret;
}

static ssize_t lock_dev_write(struct file *file, const char __user *from,
			      size_t len, loff_t *pos)
{
	char word[16];
	int ret = 0;

	if (len >= sizeof(word))
		return -EINVAL;
	if (copy_from_user(word, from, len))
		return -EFAULT;
	word[len] = '\0';
	if (sysfs_streq(word, "lock"))
		ret = lock_dev_lock(file);
	else if (sysfs_streq(word, "unlock"))
		dlock_release(file->private_data);
	else
		ret = -EINVAL;
	*pos = 0;
	return ret ?: len;
}

static ssize_t lock_dev_read(struct file *file, char __user *to, size_t len,
			     loff_t *pos)
{
	struct claim *claim = file->private_data;
	char line[48];
	int length;

	scoped_guard(mutex, &dlock.mutex) {
		if (claim->granted)
			length = scnprintf(line, sizeof(line), "held %llu.%u\n",
					   stamp_seq(claim->stamp),
					   stamp_node(claim->stamp));
		else
			length = scnprintf(line, sizeof(line), "%s\n",
					   list_empty(&claim->list) ? "free" : "waiting");
	}
	if (*pos >= length) {
		/* After the end of file it can be read again. */
		*pos = 0;
		return 0;
	}
	return simple_read_from_buffer(to, len, pos, line, length);
}

static __poll_t lock_dev_poll(struct file *file, poll_table *table)
{
	struct claim *claim = file->private_data;

	poll_wait(file, &dlock.granted, table);
	return READ_ONCE(claim->granted) ? EPOLLIN | EPOLLRDNORM : 0;
}

static const struct file_operations lock_dev_fops = {
	.owner = THIS_MODULE,
	.open = lock_dev_open,
	.release = lock_dev_release,
	.write = lock_dev_write,
	.read = lock_dev_read,
	.poll = lock_dev_poll,
	.llseek = noop_llseek,
};

static struct miscdevice lock_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kccm_lock",
	.fops = &lock_dev_fops,
	.mode = 0600,
};

/* ---- debugfs ---- */

static struct dentry *debugfs;

static ssize_t control_write(struct file *file, const char __user *from,
			     size_t len, loff_t *pos)
{
	char line[32];
	u64 increments;
	int ret;

	if (len >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, from, len))
		return -EFAULT;
	line[len] = '\0';
	if (sscanf(line, "run %llu", &increments) == 1) {
		ret = counter_run(increments);
		return ret ?: len;
	}
	if (sysfs_streq(line, "stop")) {
		counter_stop();
		return len;
	}
	return -EINVAL;
}

static const struct file_operations control_fops = {
	.owner = THIS_MODULE,
	.open = simple_open,
	.write = control_write,
	.llseek = noop_llseek,
};

static int status_show(struct seq_file *seq, void *unused)
{
	guard(mutex)(&dlock.mutex);
	dlock_show(seq);
	counter_show(seq);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(status);

/* ---- The module ---- */

static int __init lock_module_init(void)
{
	int ret;

	ret = dlock_init(quorum);
	if (ret)
		return ret;
	ret = counter_init();
	if (ret)
		goto free_dlock;
	ret = dlock_start();
	if (ret)
		goto free_counter;
	ret = misc_register(&lock_dev);
	if (ret)
		goto stop_dlock;
	debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("control", 0200, debugfs, NULL, &control_fops);
	debugfs_create_file("status", 0444, debugfs, NULL, &status_fops);
	return 0;

stop_dlock:
	dlock_stop();
free_counter:
	counter_exit();
free_dlock:
	dlock_exit();
	return ret;
}
module_init(lock_module_init);

static void __exit lock_module_exit(void)
{
	debugfs_remove(debugfs);
	misc_deregister(&lock_dev);
	counter_stop();
	dlock_stop();
	counter_exit();
	dlock_exit();
}
module_exit(lock_module_exit);

MODULE_DESCRIPTION("KCCM sample: a lock for a cluster, and a counter under it");
MODULE_LICENSE("GPL");
