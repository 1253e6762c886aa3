# Images, and both tiers as containers on this machine. What changes something is shown before it is done.

.PHONY: images push secrets start stop rollback image-check _release _replace

DOCKER ?= docker
TAG ?= 1.0
# cpu or gpu. An image for GPUs runs without one, too; it only is larger.
VARIANT ?= cpu
# As in registry.example.com/your. None: the images of this machine.
REGISTRY ?=
# What the containers see: models, settings, keys.
MODELS ?= models
CONFIGS ?= configs/container/$(VARIANT)
SECRETS ?= secrets
# What the service says it was built from.
COMMIT ?= $(shell git describe --always --abbrev=40 --match=none --dirty 2>/dev/null || echo unknown)
# In the order in which they start. With two hosts each has one of them.
TIERS ?= fallback primary
# The fallback is for the primary alone: BIND=0.0.0.0 where that is on another host.
BIND ?=

# Seconds that a tier may take to load its model.
PATIENCE ?= 300

PORT_fallback := 8082
PORT_primary := 8081
bind = $(or $(BIND),$(if $(filter primary,$(1)),0.0.0.0,127.0.0.1))
version = $(TAG)$(if $(filter cpu,$(VARIANT)),-cpu)
image = stt-$(1):$(version)
# IMAGE_primary=registry.example.com/your/stt-primary@sha256:... runs that one, whatever its tag says.
ref = $(or $(IMAGE_$(1)),$(if $(REGISTRY),$(REGISTRY)/)$(call image,$(1)))

# Each start makes a folder of its images and a copy of the settings; `current` and `previous` are links.
# One whose tiers got ready has a file `ready`: only to such a one is there a way back.
RELEASES := .stt/containers
-include $(RELEASES)/current/release.mk

# A tier writes nowhere but to /tmp and needs no privilege. It may drain for DRAIN_TIMEOUT_S, 30 s.
FLAGS := --detach --restart unless-stopped --stop-timeout 40 --read-only --tmpfs /tmp \
  --cap-drop ALL --security-opt no-new-privileges \
  --log-opt max-size=50m --log-opt max-file=5 --network stt

define build
$(DOCKER) build --file docker/Dockerfile.$(1) --build-arg VARIANT=$(VARIANT) --build-arg COMMIT=$(COMMIT) \
  $(BUILD) --tag $(call image,$(1)) .

endef

images:  ## build both images; VARIANT=gpu, TAG=1.1
	$(foreach tier,$(TIERS),$(call build,$(tier)))

define push
$(DOCKER) tag $(call image,$(1)) $(REGISTRY)/$(call image,$(1))
$(DOCKER) push $(REGISTRY)/$(call image,$(1))

endef

push:  ## tag both images for REGISTRY=registry.example.com/your and push them
	@[ -n "$(REGISTRY)" ] || { echo "Say where: make push REGISTRY=registry.example.com/your"; exit 1; }
	$(foreach tier,$(TIERS),$(call push,$(tier)))

# The containers' user has to read the files; other users of this machine are kept out by the folder.
secrets:  ## make keys of both tiers in secrets/, where there are none
	@umask 022; install -d -m 0700 $(SECRETS); \
	key() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }; \
	make_key() { mkdir -p "$${1%/*}"; [ -s "$$1" ] || { echo "==> $$1"; key > "$$1"; }; }; \
	make_key $(SECRETS)/primary/api.keys; \
	make_key $(SECRETS)/fallback/api.keys; \
	make_key $(SECRETS)/grafana/admin.password; \
	[ -s $(SECRETS)/primary/fallback.key ] || { echo "==> $(SECRETS)/primary/fallback.key"; \
	  head -n 1 $(SECRETS)/fallback/api.keys > $(SECRETS)/primary/fallback.key; }

start: secrets  ## run both images as containers, in the place of those that run; TAG=1.1, VARIANT=gpu
	@$(foreach tier,$(TIERS),$(DOCKER) image inspect $(call ref,$(tier)) >/dev/null 2>&1 \
	  || $(DOCKER) pull $(call ref,$(tier));)
	@$(MAKE) --no-print-directory _release
	@$(MAKE) --no-print-directory _replace

_release:
	@new=$(RELEASES)/$$(date -u +%Y%m%dT%H%M%S.%3NZ); mkdir -p $$new/config; \
	cp $(CONFIGS)/*.env $$new/config/; \
	{ $(foreach tier,$(TIERS),echo "image_$(tier) := $(call ref,$(tier))"; \
	  echo "publish_$(tier) := $(call bind,$(tier)):$(PORT_$(tier)):$(PORT_$(tier))";) \
	  echo "tiers := $(TIERS)"; \
	  echo "gpus := $(if $(filter gpu,$(VARIANT)),--gpus all --volume stt-cache:/cache)"; \
	  echo "config := $(CURDIR)/$$new/config"; \
	  echo "models := $(abspath $(MODELS))"; \
	  echo "secrets := $(abspath $(SECRETS))"; } > $$new/release.mk; \
	if [ -e $(RELEASES)/current/ready ]; then ln -sfn "$$(readlink $(RELEASES)/current)" $(RELEASES)/previous; fi; \
	ln -sfn "$${new##*/}" $(RELEASES)/current; \
	echo "==> Release $${new##*/}: $(foreach tier,$(TIERS),$(call ref,$(tier))), settings of $(CONFIGS)"

define replace
@if $(DOCKER) container inspect stt-$(1) >/dev/null 2>&1; then \
  set -x; $(DOCKER) stop stt-$(1) >/dev/null; $(DOCKER) rm stt-$(1) >/dev/null; fi
$(DOCKER) run --name stt-$(1) $(FLAGS) $(gpus) --publish $(publish_$(1)) \
  --volume $(config):/config:ro --volume $(models):/models:ro --volume $(secrets)/$(1):/run/secrets:ro \
  $(image_$(1))
@echo "==> Waiting until the $(1) is ready"; \
for ((n = 0; n < $(PATIENCE); n++)); do \
  if $(DOCKER) exec stt-$(1) python /opt/stt/app/health.py $(PORT_$(1)) /v1/ready >/dev/null 2>&1; \
  then exit 0; fi; sleep 1; \
done; \
$(DOCKER) logs --tail 20 stt-$(1); echo "==> The $(1) did not get ready. Back: make rollback"; exit 1

endef

_replace:
	@$(DOCKER) network inspect stt >/dev/null 2>&1 || { set -x; $(DOCKER) network create stt; }
	$(foreach tier,$(tiers),$(call replace,$(tier)))
	@touch $(RELEASES)/current/ready
	@echo "==> Running: $(foreach tier,$(tiers),$(image_$(tier)))"

stop:  ## stop both containers; what they have begun is answered
	@for tier in primary fallback; do \
	  if $(DOCKER) container inspect stt-$$tier >/dev/null 2>&1; then \
	    (set -x; $(DOCKER) stop stt-$$tier >/dev/null; $(DOCKER) rm stt-$$tier >/dev/null); fi; \
	done

rollback:  ## run the images and settings again that ran well before the last start
	@[ -L $(RELEASES)/previous ] || { echo "Nothing ran before."; exit 1; }
	@now=$$(readlink $(RELEASES)/current); back=$$(readlink $(RELEASES)/previous); \
	ln -sfn "$$back" $(RELEASES)/current; ln -sfn "$$now" $(RELEASES)/previous; \
	echo "==> Back from release $$now to $$back"
	@$(MAKE) --no-print-directory _replace

image-check: $(STAMP)  ## build both images with buildah, run them without privileges, transcribe, stop
	@PYTHONPATH=tests $(BIN)/python -m deploy.image $(ARGS)
