package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/cantuslog/cantus/internal/testkit"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts' golden files")

func TestMain(m *testing.M) {
	testscript.Main(atOnce{m}, map[string]func(){"cantus": main})
}

// atOnce runs scripts beside each other: they wait for nodes more than they
// compute.
type atOnce struct{ *testing.M }

func (m atOnce) Run() int {
	if err := testkit.AtOnce(4); err != nil {
		panic(err)
	}
	return m.M.Run()
}

// TestScripts runs testdata/script. Beside testscript's own commands:
//
//	serve NAME [flags]       start a node on free ports and wait until it is
//	                         ready; CANTUS_SERVER, HTTP and READY are set
//	follow NAME cmd args...  start a command whose output awaits lines
//	await NAME text [stderr [times]]
//	                         wait until the command has printed text, in as
//	                         many lines as times says
//	signal NAME HUP          signal the command
//	stopped NAME status [signal]
//	                         signal the command if a signal is named, wait for
//	                         its end and check its exit status; stdout and
//	                         stderr then hold all that it printed
//	flip FILE OFFSET         flip a bit of a file, whose name may be a pattern
//	scrape NAME text         wait until the metrics of a command have a text
//	status N cmd args...     run a command that must exit with status N
//	until text cmd args...   run a command again and again until it prints text;
//	                         after a "!" it may fail meanwhile
//
// and the condition
//
//	[tool:NAME]              the program NAME is installed; in CI it has to be
func TestScripts(t *testing.T) {
	dir, files := filepath.Join("testdata", "script"), []string(nil)
	if testing.Short() { // the others start dozens of processes
		for _, name := range []string{"append", "config", "follow", "read", "serve", "status"} {
			files = append(files, filepath.Join(dir, name+".txtar"))
		}
		dir = ""
	}
	testscript.Run(t, testscript.Params{
		Dir: dir, Files: files,
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values[processesKey{}] = processes{}
			env.Values[managerKey{}] = &manager{}
			if deadline, ok := t.Deadline(); ok {
				env.Values[deadlineKey{}] = deadline
			}
			env.Setenv("COLUMNS", "100")
			return nil
		},
		Condition: func(cond string) (bool, error) {
			tool, ok := strings.CutPrefix(cond, "tool:")
			if !ok {
				return false, fmt.Errorf("there is no condition %q", cond)
			}
			return haveTool(tool)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":   cmdServe,
			"follow":  cmdFollow,
			"await":   cmdAwait,
			"signal":  cmdSignal,
			"stopped": cmdStopped,
			"flip":    cmdFlip,
			"scrape":  cmdScrape,
			"status":  cmdStatus,
			"until":   cmdUntil,
			"manager": cmdManager,
			"expect":  cmdExpect,
		},
	})
}

// haveTool reports whether a program is installed. In CI a missing one is an
// error: a test that it hides would pass forever.
func haveTool(name string) (bool, error) {
	_, err := exec.LookPath(name)
	if err != nil && os.Getenv("CI") != "" {
		return false, fmt.Errorf("%w: .ci/run has to install what scripts need", err)
	}
	return err == nil, nil
}

func TestAMissingToolFailsInCI(t *testing.T) {
	t.Setenv("CI", "")
	if have, err := haveTool("no such tool"); have || err != nil {
		t.Errorf("%v, %v", have, err)
	}
	t.Setenv("CI", "true")
	if _, err := haveTool("no such tool"); err == nil {
		t.Error("it passes in CI")
	}
}
