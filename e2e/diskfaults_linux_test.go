package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/cantuslog/cantus/internal/powercut"
)

// giveDisks gives each node a file system of its own, and returns what can
// happen to it. Without root there are none. Slow disks need strace.
func (f *faulty) giveDisks() []func(*faulty) (string, error) {
	if os.Getuid() != 0 {
		f.t.Log("not root: no disk is slow, hangs or becomes read-only")
		return nil
	}
	disks := map[string]*powercut.Disk{}
	f.cluster.disks = func(name string) string {
		disks[name] = powercut.New(f.t, "4G")
		return filepath.Join(disks[name].Mount, "data")
	}
	strikes := []func(*faulty) (string, error){
		func(f *faulty) (string, error) { return f.hangDisk(disks) },
		func(f *faulty) (string, error) { return f.makeReadOnly(disks) },
	}
	if _, err := exec.LookPath("strace"); err != nil {
		f.t.Logf("no disk is slow: %v", err)
		return strikes
	}
	return append(strikes, (*faulty).slowDisk)
}

// hangDisk has a node's disk take no write and no sync for a while, which may
// be shorter or longer than an election time-out.
func (f *faulty) hangDisk(disks map[string]*powercut.Disk) (string, error) {
	n, lasts := f.anyNode(), 100*time.Millisecond+time.Duration(f.Int64N(int64(5*time.Second)))
	disk := disks[n.name]
	disk.Freeze()
	defer disk.Thaw()
	what := fmt.Sprintf("%s's disk hung for %v", n.name, lasts.Round(time.Millisecond))
	select {
	case <-time.After(lasts):
		return what, nil
	case <-f.t.Context().Done():
		return what, f.t.Context().Err()
	}
}

// makeReadOnly makes a node's file system read-only. The node must end by
// itself. It is started again once the file system can be written to.
func (f *faulty) makeReadOnly(disks map[string]*powercut.Disk) (string, error) {
	n := f.anyNode()
	what := n.name + "'s disk became read-only"
	p := n.running()
	disks[n.name].Abort()
	select {
	case <-p.done:
	case <-time.After(patience):
		return what, fmt.Errorf("the node still runs after %v", patience)
	}
	n.unready()
	disks[n.name].Return()
	return what, n.start()
}

// slowDisk has each sync of a node take longer for a while.
func (f *faulty) slowDisk() (string, error) {
	n := f.anyNode()
	longer := 10*time.Millisecond + time.Duration(f.Int64N(int64(300*time.Millisecond)))
	lasts := time.Second + time.Duration(f.Int64N(int64(4*time.Second)))
	what := fmt.Sprintf("each sync of %s took %v longer for %v", n.name, longer.Round(time.Millisecond), lasts.Round(time.Millisecond))
	const syncs = "fsync,fdatasync,msync"
	cmd := exec.Command("strace", "-f", "-o", "/dev/null", "-e", "trace="+syncs, "-e", "signal=none",
		"-e", fmt.Sprintf("inject=%s:delay_exit=%d", syncs, longer.Microseconds()), "-p", fmt.Sprint(n.running().cmd.Process.Pid))
	out, err := cmd.StderrPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return what, err
	}
	in := bufio.NewScanner(out)
	if !in.Scan() || !strings.Contains(in.Text(), "attached") {
		err = fmt.Errorf("strace: %s", in.Text())
	}
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for in.Scan() { // strace must not wait for a reader
		}
	}()
	if err == nil {
		select {
		case <-time.After(lasts):
		case <-f.t.Context().Done():
			err = f.t.Context().Err()
		}
	}
	_ = cmd.Process.Signal(os.Interrupt)
	<-drained
	if e := cmd.Wait(); e != nil && !errors.As(e, new(*exec.ExitError)) { // strace ends as if by the signal
		err = errors.Join(err, e)
	}
	return what, err
}
