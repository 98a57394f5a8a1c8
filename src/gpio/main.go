// Stands in for Python where node-red-node-pi-gpio calls it: that node runs `python3 -u nrgpio.py …`
// with the library RPi.GPIO, of which the image has neither (Python takes 21 MB, and Debian has no
// such library for it). What nrgpio.py does with the header's pins, this does by the kernel's
// character device (linux/gpio.h, version 2), one process a pin, as there:
//
//	python3 -u …/testgpio.py              exit code 0: there are pins to be had
//	python3 -u …/nrgpio.py in PIN up|down|tri MILLISECONDS
//	python3 -u …/nrgpio.py out PIN [LEVEL]
//	python3 -u …/nrgpio.py pwm PIN [HERTZ]
//	python3 -u …/nrgpio.py buzz PIN
//	python3 -u …/nrgpio.py byte 0|1
//	python3 -u …/nrgpio.py ver|rev|info
//
// Values come by standard input, a line each; `close` or its end gives the pin back. Pins are BCM
// numbers, which are the chip's lines. Another script is refused with a sentence.
package main

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// Of linux/gpio.h.
const (
	chipInfo  = 0x8044b401 // GPIO_GET_CHIPINFO_IOCTL
	getLine   = 0xc250b407 // GPIO_V2_GET_LINE_IOCTL
	getValues = 0xc010b40e // GPIO_V2_LINE_GET_VALUES_IOCTL
	setValues = 0xc010b40f // GPIO_V2_LINE_SET_VALUES_IOCTL

	flagInput    = 1 << 2
	flagOutput   = 1 << 3
	flagRising   = 1 << 4
	flagFalling  = 1 << 5
	flagPullUp   = 1 << 8
	flagPullDown = 1 << 9

	attributeValues = 2
)

type attribute struct {
	id, _ uint32
	value uint64
	mask  uint64
}

type lineConfig struct {
	flags      uint64
	attributes uint32
	_          [5]uint32
	list       [10]attribute
}

type lineRequest struct {
	offsets  [64]uint32
	consumer [32]byte
	config   lineConfig
	lines    uint32
	buffer   uint32
	_        [5]uint32
	fd       int32
}

type lineValues struct{ bits, mask uint64 }

func ioctl(fd uintptr, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// The chips whose lines are the header's pins, by label: Pi Zero to 3, Pi 4, Pi 5.
var headers = map[string]bool{
	"pinctrl-bcm2835": true, "pinctrl-bcm2711": true, "pinctrl-rp1": true,
}

// The header's chip; on a machine that has no such thing, the first one.
func openChip() (*os.File, error) {
	names, _ := filepath.Glob("/dev/gpiochip*")
	var first *os.File
	var reason error
	for _, name := range names {
		file, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			reason = err
			continue
		}
		var info struct {
			name, label [32]byte
			lines       uint32
		}
		if err := ioctl(file.Fd(), chipInfo, unsafe.Pointer(&info)); err != nil {
			reason = err
			file.Close()
			continue
		}
		if headers[strings.TrimRight(string(info.label[:]), "\x00")] {
			return file, nil
		}
		if first == nil {
			first = file
		}
	}
	switch {
	case first != nil:
		return first, nil
	case reason != nil:
		return nil, reason
	}
	return nil, fmt.Errorf(`there are no pins: the board has none, or devices in [node_red] of gatehouse.toml has no "gpio"`)
}

// Lines of the header, held until this process ends.
type lines struct {
	fd    uintptr
	file  *os.File
	count int
}

// With values: as outputs that begin with these. Without: as inputs.
func request(pins []int, flags uint64, values *uint64) (*lines, error) {
	chip, err := openChip()
	if err != nil {
		return nil, err
	}
	defer chip.Close()
	ask := lineRequest{lines: uint32(len(pins)), config: lineConfig{flags: flags}}
	copy(ask.consumer[:], "node-red")
	for i, pin := range pins {
		ask.offsets[i] = uint32(pin)
	}
	if values != nil {
		ask.config.attributes = 1
		ask.config.list[0] = attribute{id: attributeValues, value: *values, mask: 1<<len(pins) - 1}
	}
	if err := ioctl(chip.Fd(), getLine, unsafe.Pointer(&ask)); err != nil {
		if err == syscall.EBUSY {
			return nil, fmt.Errorf("pin %v is in use by another node or by the system", pins)
		}
		return nil, fmt.Errorf("pin %v cannot be had: %w", pins, err)
	}
	// So that to wait for an edge takes no thread.
	syscall.SetNonblock(int(ask.fd), true)
	return &lines{uintptr(ask.fd), os.NewFile(uintptr(ask.fd), "gpio"), len(pins)}, nil
}

func (l *lines) set(bits uint64) error {
	return ioctl(l.fd, setValues, unsafe.Pointer(&lineValues{bits, 1<<l.count - 1}))
}

func (l *lines) get() (uint64, error) {
	values := lineValues{mask: 1}
	err := ioctl(l.fd, getValues, unsafe.Pointer(&values))
	return values.bits & 1, err
}

// Lines of standard input until `close`, or its end; the node ends its input when it is removed.
func input(take func(line string)) {
	scanner := bufio.NewScanner(os.Stdin)
	for scanner.Scan() {
		if strings.Contains(scanner.Text(), "close") {
			return
		}
		take(strings.TrimSpace(scanner.Text()))
	}
}

// Reports a pin's level at first and after each edge, once it has been still for `bounce`.
func watch(pin int, bias string, bounce time.Duration) error {
	flags := uint64(flagInput | flagRising | flagFalling)
	switch bias {
	case "up":
		flags |= flagPullUp
	case "down":
		flags |= flagPullDown
	}
	line, err := request([]int{pin}, flags, nil)
	if err != nil {
		return err
	}
	level, err := line.get()
	if err != nil {
		return err
	}
	fmt.Println(level)
	go func() {
		events := make([]byte, 16*48)
		for {
			if _, err := line.file.Read(events); err != nil {
				os.Exit(1)
			}
			time.Sleep(bounce)
			level, err := line.get()
			if err != nil {
				os.Exit(1)
			}
			fmt.Println(level)
		}
	}()
	input(func(string) {})
	return nil
}

// Drives a pin: `level` at first, then what comes in.
func drive(pin int, level string) error {
	number := func(text string) uint64 {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			value, _ = strconv.ParseFloat(level, 64)
		}
		if value != 0 {
			return 1
		}
		return 0
	}
	first := number(level)
	line, err := request([]int{pin}, flagOutput, &first)
	if err != nil {
		return err
	}
	input(func(text string) { err = line.set(number(text)) })
	return err
}

// Pulses of a pin: `hertz` a second, of which `duty` in a thousand are high.
func pulse(pin int, hertz, duty float64, take func(value float64, hertz, duty *float64)) error {
	first := uint64(0)
	line, err := request([]int{pin}, flagOutput, &first)
	if err != nil {
		return err
	}
	// Nanoseconds high and low, read by the one that pulses.
	var high, low atomic.Int64
	changed := make(chan struct{}, 1)
	set := func() {
		period := 1e9 / hertz
		high.Store(int64(period * duty / 1000))
		low.Store(int64(period * (1 - duty/1000)))
		select {
		case changed <- struct{}{}:
		default:
		}
	}
	go func() {
		for {
			up, down := high.Load(), low.Load()
			// Nothing changes: no reason to wake up.
			if up <= 0 || down <= 0 {
				if up > 0 {
					line.set(1)
				} else {
					line.set(0)
				}
				<-changed
				continue
			}
			line.set(1)
			time.Sleep(time.Duration(up))
			line.set(0)
			time.Sleep(time.Duration(down))
		}
	}()
	set()
	input(func(text string) {
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			fmt.Println("bad data: " + text)
			return
		}
		take(value, &hertz, &duty)
		set()
	})
	return nil
}

// Eight pins as the bits of a number, the lowest first unless `order` is 1.
func byteOf(order int) error {
	first := uint64(0)
	line, err := request([]int{7, 11, 13, 12, 15, 16, 18, 22}, flagOutput, &first)
	if err != nil {
		return err
	}
	input(func(text string) {
		value, _ := strconv.Atoi(text)
		bits := uint64(0)
		for bit := range 8 {
			mask := 1 << bit
			if order == 1 {
				mask = 1 << (7 - bit)
			}
			if value&mask != 0 {
				bits |= 1 << bit
			}
		}
		err = line.set(bits)
	})
	return err
}

func run(arguments []string) error {
	for len(arguments) > 0 && strings.HasPrefix(arguments[0], "-") {
		arguments = arguments[1:]
	}
	script := ""
	if len(arguments) > 0 {
		script = filepath.Base(arguments[0])
		arguments = arguments[1:]
	}
	argument := func(i int) string {
		if i < len(arguments) {
			return arguments[i]
		}
		return ""
	}
	switch script {
	case "testgpio.py":
		chip, err := openChip()
		if err == nil {
			chip.Close()
		}
		return err
	case "nrgpio.py":
	default:
		return fmt.Errorf("there is no Python on this device: this runs the pins of node-red-node-pi-gpio alone")
	}
	command := strings.ToLower(argument(0))
	switch command {
	case "ver":
		fmt.Println("0.7.2")
		return nil
	case "rev":
		fmt.Println("3")
		return nil
	case "info":
		model, _ := os.ReadFile("/proc/device-tree/model")
		fmt.Printf("{'P1_REVISION': 3, 'TYPE': '%s'}\n", strings.TrimRight(string(model), "\x00"))
		return nil
	case "mouse", "kbd":
		return fmt.Errorf("mouse and keyboard are nobody's to give on this device")
	}
	pin, err := strconv.Atoi(argument(1))
	if err != nil || pin < 0 || pin > 1023 {
		return fmt.Errorf("%q is no pin: write its BCM number", argument(1))
	}
	switch command {
	case "in":
		bounce, _ := strconv.ParseFloat(argument(3), 64)
		return watch(pin, strings.ToLower(argument(2)), time.Duration(bounce*1e6))
	case "out":
		return drive(pin, argument(2))
	case "pwm":
		hertz, err := strconv.ParseFloat(argument(2), 64)
		if err != nil || hertz <= 0 {
			hertz = 100
		}
		return pulse(pin, hertz, 0, func(value float64, _, duty *float64) {
			*duty = min(max(value*10, 0), 1000)
		})
	case "buzz":
		return pulse(pin, 100, 0, func(value float64, hertz, duty *float64) {
			if *duty = 0; value > 0 {
				*hertz, *duty = value, 500
			}
		})
	case "byte":
		return byteOf(pin)
	}
	return fmt.Errorf("%q is not known: in, out, pwm, buzz, byte, ver, rev or info", command)
}

func init() {
	// The kernel's sizes, or the numbers above are another call's.
	if unsafe.Sizeof(lineRequest{}) != 592 || unsafe.Sizeof(lineConfig{}) != 272 {
		panic("the structures are not the kernel's")
	}
}

func main() {
	// A process a pin: threads count against the unit's limit.
	runtime.GOMAXPROCS(1)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gpio: "+err.Error())
		os.Exit(1)
	}
}
