package main

import (
	"os"
	"strconv"
	"strings"
)

// use is the resources that processes have used; zero on systems without /proc.
type use struct {
	cpu float64 // seconds
	rss int64   // bytes, of the largest
}

// useOf reads /proc.
func useOf(pids ...int) (all use) {
	for _, pid := range pids {
		stat, err1 := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		statm, err2 := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/statm")
		if err1 != nil || err2 != nil {
			return use{}
		}
		// Fields are counted after the program's name in parentheses. User and
		// system time are the 14th and 15th of all, in hundredths of a second.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		pages := strings.Fields(string(statm))
		if len(fields) < 13 || len(pages) < 2 {
			return use{}
		}
		user, _ := strconv.ParseFloat(fields[11], 64)
		system, _ := strconv.ParseFloat(fields[12], 64)
		resident, _ := strconv.ParseInt(pages[1], 10, 64)
		all.cpu += (user + system) / 100
		all.rss = max(all.rss, resident*int64(os.Getpagesize()))
	}
	return all
}

// pids returns the members' process ids.
func (c *cluster) pids() (all []int) {
	for _, m := range c.members {
		all = append(all, m.cmd.Process.Pid)
	}
	return all
}
