# The lab's first process on its real root: mounts the rest, runs /lab/run, tells its status, and ends the machine.
exec > /dev/console 2>&1
export PATH=/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do
    mount -t tmpfs -o mode=1777 tmpfs $place
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -s /proc/self/fd /dev/fd
ip link set lo up
hostname lab
# As systemd sets it: QEMU runs as a user of its own.
chmod 666 /dev/kvm

# The device of a virtio port.
port() {
    for device in /sys/class/virtio-ports/*; do
        [ "$(cat "$device/name")" = "$1" ] && echo "/dev/${device##*/}"
    done
}

# Descriptor 3 tells how far the machine is, and every few seconds that it runs at all. A port has one opener alone.
exec 3> "$(port progress)"
while echo beat; do sleep 5; done >&3 2>&1 &
cd /lab
sh /lab/run > "$(port output)" 2>&1 < /dev/null
echo "status $?" >&3
# QEMU takes a restart for the end.
echo b > /proc/sysrq-trigger
