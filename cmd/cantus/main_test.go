package main

import (
	"flag"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts' golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"cantus": main})
}

// TestScripts runs testdata/script. Beside testscript's own commands:
//
//	serve NAME [flags]       start a node on free ports and wait until it is
//	                         ready; CANTUS_SERVER, HTTP and READY are set
//	follow NAME cmd args...  start a command whose output awaits lines
//	await NAME text          wait until the command has printed text
//	stopped NAME status [signal]
//	                         signal the command if a signal is named, wait for
//	                         its end and check its exit status; stdout and
//	                         stderr then hold all that it printed
//	flip FILE OFFSET         flip a bit of a file
//	status N cmd args...     run a command that must exit with status N
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 filepath.Join("testdata", "script"),
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values[processesKey{}] = processes{}
			if deadline, ok := t.Deadline(); ok {
				env.Values[deadlineKey{}] = deadline
			}
			env.Setenv("COLUMNS", "100")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":   cmdServe,
			"follow":  cmdFollow,
			"await":   cmdAwait,
			"stopped": cmdStopped,
			"flip":    cmdFlip,
			"status":  cmdStatus,
		},
	})
}
