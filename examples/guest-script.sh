#!/bin/sh
# Runs in the Linux guest that `cargo xtask guest --firmware FILE --script THIS` boots: sends one
# message to the firmware and wants its text back, in capitals or as it was. The shell is busybox's.
# Whatever this script ends with, xtask ends with too.
set -eu

device=/dev/rpmsg0
# The firmware announces its channel when it has started, which may be after the guest.
tries=0
until [ -e "$device" ]; do
	tries=$((tries + 1))
	if [ "$tries" -gt 100 ]; then
		echo "there is no $device: the firmware has announced no service named rpmsg-raw" >&2
		exit 1
	fi
	sleep 0.1
done

rprocd-guest-check list

# One write is one message, one read is one answer. Both go through one open file, since each time
# the node is opened, the far side sees another sender.
exec 3<>"$device"
printf 'hello from the guest' >&3
answer=$(timeout 10 dd bs=512 count=1 <&3 2>/dev/null) || {
	echo "no answer within 10 s" >&2
	exit 1
}
echo "sent   hello from the guest"
echo "answer $answer"
case "$answer" in
'hello from the guest' | 'HELLO FROM THE GUEST') ;;
*)
	echo "that is another text" >&2
	exit 1
	;;
esac
