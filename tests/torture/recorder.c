// SPDX-License-Identifier: GPL-2.0
/*
 * The history of this machine, in memory that its host has a file for: QEMU's
 * ivshmem device. See history.h.
 */
#include <linux/io.h>
#include <linux/pci.h>
#include <linux/spinlock.h>

#include "torture.h"

#define IVSHMEM_VENDOR	0x1af4
#define IVSHMEM_DEVICE	0x1110
#define IVSHMEM_BAR	2

static DEFINE_SPINLOCK(recorder_lock);
static struct pci_dev *device;
static struct history_ring *ring;
static struct history_record *records;
static u32 capacity;
/* Ours; the copies in the ring are for the host to read. */
static u64 head, lost;

static int recorder_map(void)
{
	size_t size = pci_resource_len(device, IVSHMEM_BAR);

	ring = memremap(pci_resource_start(device, IVSHMEM_BAR), size,
			MEMREMAP_WB);
	if (!ring)
		return -ENOMEM;
	records = (void *)ring + HISTORY_OFFSET;
	capacity = ring->capacity;
	if (ring->magic == HISTORY_MAGIC && capacity &&
	    ring->record_size == sizeof(*records) &&
	    capacity <= (size - HISTORY_OFFSET) / sizeof(*records))
		return 0;
	pr_err("the shared memory has not been prepared by the host\n");
	memunmap(ring);
	return -EINVAL;
}

int recorder_open(void)
{
	int ret;

	device = pci_get_device(IVSHMEM_VENDOR, IVSHMEM_DEVICE, NULL);
	if (!device) {
		pr_err("there is no ivshmem device\n");
		return -ENODEV;
	}
	ret = pci_enable_device_mem(device);
	if (ret)
		goto err_put;
	ret = recorder_map();
	if (ret)
		goto err_disable;
	/* The module may have been loaded before. */
	head = ring->head;
	lost = ring->lost;
	return 0;

err_disable:
	pci_disable_device(device);
err_put:
	pci_dev_put(device);
	return ret;
}

void recorder_close(void)
{
	memunmap(ring);
	pci_disable_device(device);
	pci_dev_put(device);
}

static void put(const struct history_record *record)
{
	if (head - READ_ONCE(ring->tail) < capacity) {
		records[head % capacity] = *record;
		/* Pairs with the host, which reads head first. */
		smp_store_release(&ring->head, head + 1);
		WRITE_ONCE(head, head + 1);
	} else {
		WRITE_ONCE(ring->lost, ++lost);
	}
}

void record(const struct history_record *record)
{
	unsigned long flags;

	spin_lock_irqsave(&recorder_lock, flags);
	put(record);
	spin_unlock_irqrestore(&recorder_lock, flags);
}

void record_since(struct history_record *record, u64 since)
{
	unsigned long flags;

	spin_lock_irqsave(&recorder_lock, flags);
	record->result = min_t(u64, head + 1 - since, INT_MAX);
	put(record);
	spin_unlock_irqrestore(&recorder_lock, flags);
}

u64 recorded(void)
{
	return READ_ONCE(head);
}

bool recorder_crowded(void)
{
	return READ_ONCE(head) - READ_ONCE(ring->tail) > capacity / 2;
}
