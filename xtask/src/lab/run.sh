# Runs a test by its number in the plan, its binary and its name. One that does not end is killed, after a look at the machine.
run() {
    echo "begin $1" >&3
    # The options are words of the shell's. The test takes the place of the shell, which is to be killed with it.
    eval "exec \"\$2\" --exact \"\$3\" --show-output $options" 3>&- &
    test=$!
    (
        read -r now _ < /proc/uptime
        end=$((${now%.*} + test_seconds_max))
        while [ "${now%.*}" -lt $end ]; do
            sleep 1
            kill -0 $test 2> /dev/null || exit 0
            read -r now _ < /proc/uptime
        done
        echo "lab: $3 has not ended after $test_seconds_max s; what runs, and the end of the kernel's messages:"
        ps -e -o pid,ppid,stat,wchan:24,time,args | grep -v '\[.*\]$'
        dmesg | tail -n 15
        kill -9 $test
    ) 3>&- &
    watch=$!
    wait $test 2> /dev/null
    status=$?
    wait $watch
    echo "end $1 $status" >&3
}
