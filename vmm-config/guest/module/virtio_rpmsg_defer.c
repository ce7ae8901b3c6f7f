// SPDX-License-Identifier: GPL-2.0-only
/*
 * virtio_rpmsg_defer: lets the stock virtio_rpmsg_bus driver work safely over
 * virtio-pci and virtio-mmio.
 *
 * These transports call a driver's virtqueue callbacks from a hard interrupt
 * handler. virtio_rpmsg_bus was written for remoteproc, which calls them from
 * a thread, and so it takes mutexes and registers devices there. This module
 * stands between the two: while a driver is bound to a virtio rpmsg device,
 * the device's config operations are replaced by a copy in which
 *
 *   find_vqs  hands the transport a callback that only queues work; the
 *             driver's own callback runs from that work, in process context;
 *   reset     waits, after the device was reset, for work that still runs:
 *             a driver may rely on "no callback after reset", and does;
 *   del_vqs   forgets the queues before they are freed.
 *
 * The driver itself is not touched, and when it lets go of the device the
 * original operations are put back.
 */

#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/device.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/workqueue.h>

/* The queue towards the driver; see receive_has_work(). */
#define RECEIVE_QUEUE 0

struct deferred_queue {
	struct work_struct work;
	struct virtqueue *vq;
	vq_callback_t *callback;	/* the driver's own */
	unsigned int number;
};

/* One device with a driver bound to it. */
struct deferred_device {
	struct list_head node;		/* in devices, under devices_lock */
	struct virtio_device *vdev;
	const struct virtio_config_ops *original;
	struct virtio_config_ops ops;	/* the copy that vdev->config points to */
	struct deferred_queue *queues;	/* NULL while there are none */
	unsigned int queue_count;
	bool stopped;			/* the device was reset: queue nothing */
};

static LIST_HEAD(devices);
static DEFINE_MUTEX(devices_lock);
static struct workqueue_struct *defer_wq;

/* Valid only where vdev->config is known to be a copy of ours. */
static struct deferred_device *to_deferred(const struct virtio_device *vdev)
{
	return container_of(vdev->config, struct deferred_device, ops);
}

/*
 * Several interrupts may come before the work runs once, and one run of the
 * driver's receive callback empties the queue. A second run would find
 * nothing, which the driver reports as an error. So look first. Interrupts
 * are enabled before the look: what comes after it queues the work again.
 *
 * Only for the receive queue. On the transmit queue used buffers lie about
 * until the driver runs out of fresh ones, so the answer would say nothing;
 * and that queue's state belongs to the senders' lock, not to us.
 */
static bool receive_has_work(struct virtqueue *vq)
{
	return virtqueue_poll(vq, virtqueue_enable_cb_prepare(vq));
}

static void deferred_work(struct work_struct *work)
{
	struct deferred_queue *queue =
		container_of(work, struct deferred_queue, work);

	if (queue->number == RECEIVE_QUEUE && !receive_has_work(queue->vq))
		return;
	queue->callback(queue->vq);
}

/* What the transport calls, in interrupt context. */
static void deferred_callback(struct virtqueue *vq)
{
	struct deferred_device *dev = to_deferred(vq->vdev);
	unsigned int i;

	if (READ_ONCE(dev->stopped))
		return;
	for (i = 0; i < dev->queue_count; i++) {
		if (dev->queues[i].vq == vq) {
			queue_work(defer_wq, &dev->queues[i].work);
			return;
		}
	}
}

static void cancel_queues(struct deferred_device *dev)
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++)
		cancel_work_sync(&dev->queues[i].work);
}

static void drop_queues(struct deferred_device *dev)
{
	kfree(dev->queues);
	dev->queues = NULL;
	dev->queue_count = 0;
}

static int make_queues(struct deferred_device *dev, unsigned int count)
{
	unsigned int i;

	if (dev->queues)
		return -EBUSY;
	dev->queues = kcalloc(count, sizeof(*dev->queues), GFP_KERNEL);
	if (!dev->queues)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		INIT_WORK(&dev->queues[i].work, deferred_work);
		dev->queues[i].number = i;
	}
	dev->queue_count = count;
	WRITE_ONCE(dev->stopped, false);
	return 0;
}

/* No callback comes before the driver says DRIVER_OK, which is after this. */
static void fill_queues(struct deferred_device *dev, struct virtqueue *vqs[])
{
	unsigned int i;

	for (i = 0; i < dev->queue_count; i++)
		dev->queues[i].vq = vqs[i];
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int deferred_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
			     struct virtqueue *vqs[],
			     struct virtqueue_info infos[],
			     struct irq_affinity *desc)
{
	struct deferred_device *dev = to_deferred(vdev);
	struct virtqueue_info *ours;
	unsigned int i;
	int err;

	err = make_queues(dev, nvqs);
	if (err)
		return err;
	ours = kmemdup(infos, nvqs * sizeof(*infos), GFP_KERNEL);
	if (!ours) {
		drop_queues(dev);
		return -ENOMEM;
	}
	for (i = 0; i < nvqs; i++) {
		dev->queues[i].callback = infos[i].callback;
		if (infos[i].callback)
			ours[i].callback = deferred_callback;
	}
	err = dev->original->find_vqs(vdev, nvqs, vqs, ours, desc);
	kfree(ours);
	if (err)
		drop_queues(dev);
	else
		fill_queues(dev, vqs);
	return err;
}
#else
static int deferred_find_vqs(struct virtio_device *vdev, unsigned int nvqs,
			     struct virtqueue *vqs[],
			     vq_callback_t *callbacks[],
			     const char * const names[], const bool *ctx,
			     struct irq_affinity *desc)
{
	struct deferred_device *dev = to_deferred(vdev);
	vq_callback_t **ours;
	unsigned int i;
	int err;

	err = make_queues(dev, nvqs);
	if (err)
		return err;
	ours = kcalloc(nvqs, sizeof(*ours), GFP_KERNEL);
	if (!ours) {
		drop_queues(dev);
		return -ENOMEM;
	}
	for (i = 0; i < nvqs; i++) {
		dev->queues[i].callback = callbacks[i];
		if (callbacks[i])
			ours[i] = deferred_callback;
	}
	err = dev->original->find_vqs(vdev, nvqs, vqs, ours, names, ctx, desc);
	kfree(ours);
	if (err)
		drop_queues(dev);
	else
		fill_queues(dev, vqs);
	return err;
}
#endif

static void deferred_reset(struct virtio_device *vdev)
{
	struct deferred_device *dev = to_deferred(vdev);

	/* The transport waits here for interrupt handlers that still run. */
	dev->original->reset(vdev);
	WRITE_ONCE(dev->stopped, true);
	cancel_queues(dev);
}

static void deferred_del_vqs(struct virtio_device *vdev)
{
	struct deferred_device *dev = to_deferred(vdev);

	WRITE_ONCE(dev->stopped, true);
	cancel_queues(dev);
	/* Frees the interrupts; after it nothing looks at dev->queues. */
	dev->original->del_vqs(vdev);
	cancel_queues(dev);
	drop_queues(dev);
}

static void attach(struct virtio_device *vdev)
{
	struct deferred_device *dev;

	/* While a driver is bound this code is in its path: stay loaded. */
	if (!try_module_get(THIS_MODULE))
		return;
	dev = kzalloc(sizeof(*dev), GFP_KERNEL);
	if (!dev) {
		module_put(THIS_MODULE);
		dev_err(&vdev->dev,
			"%s: out of memory, callbacks stay in interrupt context\n",
			KBUILD_MODNAME);
		return;
	}
	dev->vdev = vdev;
	dev->original = vdev->config;
	dev->ops = *vdev->config;
	dev->ops.find_vqs = deferred_find_vqs;
	dev->ops.reset = deferred_reset;
	dev->ops.del_vqs = deferred_del_vqs;

	mutex_lock(&devices_lock);
	list_add(&dev->node, &devices);
	mutex_unlock(&devices_lock);
	vdev->config = &dev->ops;
}

/*
 * Called when the driver has gone, or did not come. Without this the next
 * bind would take the copy for the original and call itself for ever.
 */
static void detach(struct virtio_device *vdev)
{
	struct deferred_device *dev, *found = NULL;

	mutex_lock(&devices_lock);
	list_for_each_entry(dev, &devices, node) {
		if (dev->vdev == vdev) {
			list_del(&dev->node);
			found = dev;
			break;
		}
	}
	mutex_unlock(&devices_lock);
	if (!found)
		return;

	vdev->config = found->original;
	drop_queues(found);
	kfree(found);
	module_put(THIS_MODULE);
}

/* The device's lock is held: one event at a time for each device. */
static int bus_event(struct notifier_block *nb, unsigned long event, void *data)
{
	struct virtio_device *vdev = dev_to_virtio(data);

	if (vdev->id.device != VIRTIO_ID_RPMSG)
		return NOTIFY_DONE;

	switch (event) {
	case BUS_NOTIFY_BIND_DRIVER:
		attach(vdev);
		break;
	case BUS_NOTIFY_UNBOUND_DRIVER:
	case BUS_NOTIFY_DRIVER_NOT_BOUND:
		detach(vdev);
		break;
	}
	return NOTIFY_DONE;
}

static struct notifier_block bus_notifier = {
	.notifier_call = bus_event,
};

/*
 * The virtio bus is not exported. A driver that matches no device learns its
 * address when it is registered.
 */
static const struct virtio_device_id no_devices[] = {
	{ 0 },
};

static int never_probe(struct virtio_device *vdev)
{
	return -ENODEV;
}

static struct virtio_driver bus_finder = {
	.driver.name = KBUILD_MODNAME,
	.driver.owner = THIS_MODULE,
	.id_table = no_devices,
	.probe = never_probe,
};

static int warn_if_bound(struct device *device, void *unused)
{
	struct virtio_device *vdev = dev_to_virtio(device);

	if (vdev->id.device == VIRTIO_ID_RPMSG && device->driver)
		dev_notice(device,
			   "%s: bound to its driver before this module came; unbind and bind it again\n",
			   KBUILD_MODNAME);
	return 0;
}

static int __init defer_init(void)
{
	int err;

	/* Unbound: a receive callback that sleeps must not hold up a sender. */
	defer_wq = alloc_workqueue(KBUILD_MODNAME, WQ_UNBOUND | WQ_HIGHPRI, 0);
	if (!defer_wq)
		return -ENOMEM;
	err = register_virtio_driver(&bus_finder);
	if (err)
		goto destroy_wq;
	err = bus_register_notifier(bus_finder.driver.bus, &bus_notifier);
	if (err)
		goto unregister_driver;
	bus_for_each_dev(bus_finder.driver.bus, NULL, NULL, warn_if_bound);
	return 0;

unregister_driver:
	unregister_virtio_driver(&bus_finder);
destroy_wq:
	destroy_workqueue(defer_wq);
	return err;
}

static void __exit defer_exit(void)
{
	/* No device is attached: each of them holds a reference on the module. */
	bus_unregister_notifier(bus_finder.driver.bus, &bus_notifier);
	unregister_virtio_driver(&bus_finder);
	destroy_workqueue(defer_wq);
}

module_init(defer_init);
module_exit(defer_exit);

MODULE_DESCRIPTION("Runs virtio rpmsg callbacks in process context");
MODULE_AUTHOR("The rprocd authors");
MODULE_LICENSE("GPL");
