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

# The kernel patches its scheduler when the first virtual machine begins and when the last one ends. QEMU's threads do not
# always see such a change in time, and the kernel crashes. A virtual machine that never runs keeps it from patching.
python3 -c '
import fcntl, time
kvm = open("/dev/kvm")
machine = fcntl.ioctl(kvm, 0xAE01, 0) # KVM_CREATE_VM
fcntl.ioctl(machine, 0xAE60) # KVM_CREATE_IRQCHIP
processor = fcntl.ioctl(machine, 0xAE41, 0) # KVM_CREATE_VCPU
time.sleep(1e6)' &
# Descriptor 3 tells how far the machine is, and every few seconds that it runs at all. A port has one opener alone.
exec 3> "$(port progress)"
while echo beat; do sleep 5; done >&3 2>&1 &
cd /lab
sh /lab/run > "$(port output)" 2>&1 < /dev/null
echo "status $?" >&3
# QEMU takes a restart for the end.
echo b > /proc/sysrq-trigger
