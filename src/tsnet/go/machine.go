//go:build wasip1

package main

import (
	"log"

	"tailscale.com/hostinfo"
	"tailscale.com/tailcfg"
	"tailscale.com/types/opt"
)

// hostMachine is what the host says of the machine, in Tailscale's words (tailcfg.Hostinfo).
type hostMachine struct {
	OS             string `json:"os"`
	OSVersion      string `json:"osVersion"`
	Distro         string `json:"distro"`
	DistroVersion  string `json:"distroVersion"`
	DistroCodeName string `json:"distroCodeName"`
	Machine        string `json:"machine"`
	Arch           string `json:"arch"`
	DeviceModel    string `json:"deviceModel"`
	Container      *bool  `json:"container"`
	Desktop        *bool  `json:"desktop"`
}

// describeMachine makes the node known to the control server as what it runs on: Tailscale's own code sees the module, "wasip1".
func describeMachine() {
	hostinfo.RegisterHostinfoNewHook(func(hi *tailcfg.Hostinfo) {
		m, err := queryJSON[hostMachine](queryMachine)
		if err != nil {
			log.Printf("tsnet: what this machine is: %v", err)
			return
		}
		hi.OS, hi.OSVersion = m.OS, m.OSVersion
		hi.Distro, hi.DistroVersion, hi.DistroCodeName = m.Distro, m.DistroVersion, m.DistroCodeName
		hi.Machine, hi.GoArch, hi.DeviceModel = m.Machine, m.Arch, m.DeviceModel
		if m.Container != nil {
			hi.Container = opt.NewBool(*m.Container)
		}
		if m.Desktop != nil {
			hi.Desktop = opt.NewBool(*m.Desktop)
		}
	})
}
