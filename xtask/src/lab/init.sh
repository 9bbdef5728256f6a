#!/bin/busybox sh
# The lab's first process, in the initramfs: loads modules, puts the base image under the lab's drive, and starts there.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
    insmod "/modules/$module" || echo "lab: $module cannot be loaded"
done < /modules/order

for device in /dev/vda /dev/vdb; do
    tries=0
    while [ ! -e $device ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.1
    done
done
# What fails here ends the first process, and with it the machine: the kernel panics and says so.
set -e
mount -t ext4 -o ro /dev/vda /base
mount -t ext4 -o noinit_itable /dev/vdb /drive
mount -t overlay -o lowerdir=/base,upperdir=/drive/upper,workdir=/drive/work overlay /newroot
mkdir -p /newroot/lab
mount -o bind /drive/lab /newroot/lab
for place in proc sys dev; do
    mount -o move /$place /newroot/$place
done
exec switch_root /newroot /bin/sh /lab/start
