"""Words that the gate of rewrites takes for each other; what is not here is left to the embeddings.

Each line is a group, for words common in captions. Only words with which the caption stays true both ways: no
"vehicle" for a tractor. A word may stand in several groups.
"""

from __future__ import annotations

_GROUPS = """
person someone somebody human individual figure
people persons humans folks crowd
man guy gentleman male bloke fellow
woman lady female
boy lad
girl lass
child kid youngster toddler
baby infant newborn
doctor physician medic
nurse caregiver
policeman cop police officer policewoman
firefighter fireman
teacher instructor educator
student pupil
farmer rancher
cook chef
pilot aviator flyer
astronaut cosmonaut spaceman
artist painter
singer vocalist
soldier trooper warrior
paratrooper parachutist
judge magistrate
guard guardsman sentry
scientist researcher
mechanic repairman
worker labourer laborer
king monarch
bride newlywed
mother mum mom mama
father dad papa
grandmother grandma granny
grandfather grandpa
family household
friend buddy pal
player athlete
rider horseman
passenger traveller traveler
dog canine hound pooch
puppy pup
cat feline kitty
kitten kitty
rabbit bunny hare
pig hog swine
donkey ass burro
bison buffalo
cow cattle
bull ox steer
hen chicken
rooster cock cockerel
duck drake
goose gander
dolphin porpoise
mule hinny
mouse mice
bug insect
ladybug ladybird
firefly glowworm
pigeon dove
crow raven
gull seagull
parrot parakeet
peacock peafowl
turtle tortoise
snake serpent
frog treefrog
crocodile croc
alligator gator
leopard panther
puma cougar
fox vixen
flower blossom bloom
tree sapling
bush shrub
forest woods wood woodland
grass lawn
leaf foliage
plant greenery
mushroom toadstool fungus
corn maize
aubergine eggplant
courgette zucchini
potato spud
pepper capsicum
peanut groundnut
pea peas
biscuit cookie cracker
sweet candy
chips fries
crisps chips
pasta noodle spaghetti
hamburger burger
hotdog frankfurter
doughnut donut
cake gateau
bread loaf
drink beverage
coffee espresso
beer ale lager
meal dish
cup mug
glass tumbler
plate dish
bowl basin
bottle flask
pot pan
jar pot
knife blade
pan skillet
cooker stove
oven stove
refrigerator fridge
bucket pail
box crate carton
bag sack
purse handbag
backpack rucksack knapsack
suitcase luggage baggage
wallet billfold
umbrella parasol brolly
sunglasses shades
glasses spectacles eyeglasses
hat cap
helmet headgear
trousers pants slacks
jeans denims
shirt blouse
sweater jumper pullover
jacket coat
coat overcoat
dress gown frock
skirt kilt
shoe footwear
sneaker trainer
boot wellington
glove mitten
sock stocking
scarf shawl
tie necktie
headscarf hijab
ring band
necklace pendant
watch wristwatch
clock timepiece
car automobile auto
bus coach
lorry truck
van minivan
taxi cab
bicycle bike cycle
motorcycle motorbike
scooter moped
train locomotive
tram streetcar trolley
aeroplane airplane plane aircraft jet
helicopter chopper
ship vessel
boat vessel ship
sailboat yacht
canoe kayak
rocket spaceship spacecraft
bulldozer digger
excavator digger
wheel tyre tire
engine motor
road street
motorway highway freeway
path trail track
pavement sidewalk
crossroads crossroad intersection
bridge overpass
house home
building edifice
flat apartment
cottage cabin hut
castle fortress
fort fortress stronghold
church chapel
shop store
market bazaar
school schoolhouse
hospital infirmary
barn stable
garden yard
field meadow
park garden
mountain peak
valley dale
river stream
brook creek stream
lake pond
sea ocean
beach shore seashore coast seaside
island isle
cliff crag
cave cavern
desert dunes
sky heaven
star pentagram
moon lunar
sun solar
storm tempest
rain rainfall
snow snowfall
lightning thunderbolt
fire flame blaze
smoke fumes
stone rock boulder pebble
wall fence
gate gateway
door doorway
window pane
floor ground
roof rooftop
stairs staircase steps
ladder stepladder
couch sofa settee
chair seat
stool seat
bench seat
bed bunk
table desk
desk table
cupboard cabinet wardrobe closet
shelf rack
lamp light
light lamp
bulb lightbulb
candle taper
rug carpet mat
curtain drape
blanket quilt
pillow cushion
tap faucet
toilet lavatory loo
bathtub bath tub
television tv telly
telephone phone
mobile cellphone smartphone phone
computer pc
laptop notebook
camera camcorder
radio wireless
torch flashlight
battery cell
screw bolt
hammer mallet
spanner wrench
saw handsaw
axe ax hatchet
drill borer
spade shovel
rope cord string
chain chains
lock padlock
key keys
tool implement
gun firearm pistol handgun
rifle gun
sword blade sabre
bow longbow
arrow pointer
bomb explosive
syringe needle
pill tablet
bandage plaster
crutch crutches
violin fiddle
drum drums
trumpet bugle
piano keyboard
ball sphere
football soccer
game sport match
toy plaything
doll dolly
teddy bear
kite glider
balloon balloons
present gift
prize award
medal medallion
trophy cup
flag banner ensign pennant
sign signboard placard
poster placard
letter character
number figure digit numeral
word term
book volume
newspaper paper
magazine journal
map chart
card postcard
mail post
mailbox postbox letterbox
money cash
coin penny
banknote bill note
rubbish garbage trash waste refuse litter
bin dustbin
film movie
photo photograph picture
music tune
song melody
dance dancing
party celebration
circle disc disk round
square box
triangle wedge
cross plus
diamond rhombus
ring hoop
heart valentine
dot spot
stripe band
line stroke
big large huge giant great enormous massive gigantic
small little tiny mini miniature wee
tall high
long lengthy
wide broad
thin slim slender narrow
fat plump
striped banded stripy stripe
dotted spotted spot dot
checked chequered checkered checkerboard
plain solid
old ancient aged antique elderly
new modern
young youthful juvenile
fast quick rapid
slow sluggish
happy glad joyful cheerful
sad unhappy
angry furious mad
scared afraid frightened
tired weary
sleepy drowsy
sick ill
wounded injured
rich wealthy
clean spotless
dirty filthy
wet damp
shiny glossy shining
bright vivid
colourful colorful multicoloured multicolored
wooden wood timber
metal metallic
closed shut
open opened
broken cracked
full filled
hot warm
cold chilly
medium middle intermediate
fair light
skin complexion
tone shade
sleep nap snooze doze slumber asleep sleeping
run jog sprint
walk stroll hike
jump leap hop
ride riding
drive driving
fly soar flying
swim swimming
climb climbing scale
throw toss hurl
catch grab
hold carry grip
pull tug drag
push shove
lift raise
eat devour chew munch dine
drink sip
cook prepare
speak talk
shout yell scream
sing singing
laugh giggle
smile grin beam smiling
cry weep sob
kiss smooch
hug embrace
look gaze watch stare
hit strike
fight battle
play playing
build construct
repair fix mend
cut slice
grow sprout
shine glow gleam
burn blaze
fall drop
rise raised
allow permit
forbid prohibit ban
enter entry entrance enter
exit leave
gesture signal sign
shrug shrugging
wave waving
bow bowing
juggle juggling
golf golfer
surf surfer surfing
ski skier
cycle cyclist bicycle
biking cyclist
row rower rowing
swim swimmer
run runner
wrestle wrestler wrestling
america usa american
britain uk british
france french
canada canadian
australia australian
india indian
mexico mexican
russia russian
korea korean
europe european
germany german
spain spanish
italy italian
netherlands dutch
greece greek
ireland irish
denmark danish
sweden swedish
norway norwegian
finland finnish
poland polish
turkey turkish
switzerland swiss
china chinese
japan japanese
wales welsh
thailand thai
philippines filipino philippine
iceland icelandic
scotland scottish scots
england english
portugal portuguese
sea marine
earth globe world
christmas xmas
halloween hallowe'en
easter paschal
ok okay
"""


def _groups() -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for number, line in enumerate(_GROUPS.splitlines()):
        for word in line.split():
            found.setdefault(word, set()).add(number)
    return {word: frozenset(numbers) for word, numbers in found.items()}


GROUPS = _groups()
"""Word -> the groups in which it stands."""
