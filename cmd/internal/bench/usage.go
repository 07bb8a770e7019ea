package bench

import (
	"os"
	"strconv"
	"strings"
	"time"
)

// usage is the resources that a process has used. Known is false on systems
// without /proc.
type usage struct {
	Known bool
	CPU   time.Duration // user and system, since it began
	RSS   int64         // resident, bytes, including mapped files
	Anon  int64         // resident and not backed by a file, bytes
}

// clockTick is the unit of /proc's processor times: USER_HZ, 100 on every
// architecture that Go runs on.
const clockTick = 10 * time.Millisecond

// processUsage reads a process's usage.
func processUsage(pid int) usage {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return usage{}
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return usage{}
	}
	return parseUsage(string(stat), string(status))
}

func parseUsage(stat, status string) usage {
	// The program's name, in parentheses, may contain spaces: fields are
	// counted after it. User and system time are the 14th and 15th of all.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return usage{}
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return usage{}
	}
	return usage{
		Known: true, CPU: time.Duration(user+system) * clockTick,
		RSS: statusBytes(status, "VmRSS:"), Anon: statusBytes(status, "RssAnon:"),
	}
}

func statusBytes(status, key string) int64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			kb, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb << 10
		}
	}
	return 0
}

// device is the block device that holds a directory.
type device struct {
	major, minor uint32
	known        bool
}

// written returns the bytes written to the device since the machine started,
// after a sync of everything.
func (d device) written() (bytes int64, ok bool) {
	if !d.known {
		return 0, false
	}
	syncAll()
	stats, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return 0, false
	}
	return parseDiskstats(string(stats), d)
}

// parseDiskstats returns the bytes of the device's line. Its tenth field counts
// sectors of 512 bytes, whatever the device's sector size is.
func parseDiskstats(stats string, d device) (bytes int64, ok bool) {
	major, minor := strconv.Itoa(int(d.major)), strconv.Itoa(int(d.minor))
	for line := range strings.Lines(stats) {
		fields := strings.Fields(line)
		if len(fields) < 10 || fields[0] != major || fields[1] != minor {
			continue
		}
		sectors, err := strconv.ParseInt(fields[9], 10, 64)
		return sectors * 512, err == nil
	}
	return 0, false
}
