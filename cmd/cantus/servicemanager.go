package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// serviceManager is what started the process, if that wants to know how the
// node is: systemd, for a unit of Type=notify, or another program that sets
// NOTIFY_SOCKET. sd_notify(3) has the protocol.
type serviceManager struct {
	log    *slog.Logger
	notify func(unset bool, state string) (sent bool, err error)
	within time.Duration // the time between two signs of life, 0 if none is expected
}

func newServiceManager(log *slog.Logger) serviceManager {
	within, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("there are no signs of life for the service manager", "err", err)
	}
	return serviceManager{log: log, notify: daemon.SdNotify, within: within}
}

// tell sends assignments, if there is a manager.
func (m serviceManager) tell(assignments ...string) {
	if _, err := m.notify(false, strings.Join(assignments, "\n")); err != nil {
		m.log.Warn("the service manager was not told", "what", assignments, "err", err)
	}
}

// ready says that the node serves, for the first time or after a reload.
func (m serviceManager) ready(status string) { m.tell(daemon.SdNotifyReady, "STATUS="+status) }

// stopping says that the node ends.
func (m serviceManager) stopping() { m.tell(daemon.SdNotifyStopping, "STATUS=stopping") }

// reloading says that the node reads its settings. ready follows.
func (m serviceManager) reloading() {
	m.tell(daemon.SdNotifyReloading, strings.TrimSpace(daemon.SdNotifyMonotonicUsec()), "STATUS=reloading")
}

// watch sends signs of life, if the manager expects them, until stop is called.
// There is none while probe does not return: the manager then ends the process.
func (m serviceManager) watch(probe func(context.Context) error) (stop func()) {
	if m.within == 0 {
		return func() {}
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(m.within / 4)
		defer tick.Stop()
		for {
			if probe(ctx) == nil {
				m.tell(daemon.SdNotifyWatchdog)
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	return func() {
		cancel()
		watching.Wait()
	}
}
